//! Images with label maps, and their augmentation.

use std::path::Path;

use clasp_data::Rng as DataRng;
use clasp_data::augment::erase::normal;
use clasp_data::augment::{Affine, warp, warp_labels};
use clasp_data::image::Rgb;
use clasp_data::layouts::ccp::ccp_parts;
use clasp_data::layouts::parsing::{
    BLACK_AND_WHITE, IGNORE, LabelMap, MaskedImage, ParsingDataset, is_black_and_white,
};
use clasp_data::layouts::sides::twins;
use clasp_data::part;
use rand::RngExt;

use super::{ParsingClasses, ParsingConfig, ParsingTarget, ParsingTask};
use crate::TaskError;
use crate::features::{Preprocess, read_image};
use crate::task::{Example, SplitChoice, TrainingExamples};

/// Labels that identify Clothing Co-Parsing.
const CCP_NAMES: [&str; 3] = ["skin", "hair", "dress"];

/// Images with label maps.
#[derive(Debug)]
pub struct ParsingSet {
    pub(super) parsing: ParsingDataset,
    pub(super) images: Vec<MaskedImage>,
    pub(super) split: String,
}

/// Opens the data of a folder with the configured classes.
pub(super) fn open_data(
    folder: &Path,
    classes: ParsingClasses,
) -> Result<ParsingDataset, TaskError> {
    let parsing = ParsingDataset::open(folder)?;
    Ok(match classes {
        ParsingClasses::Stored => parsing,
        ParsingClasses::CcpParts => {
            let known = |name: &&str| parsing.classes.iter().any(|class| class == name);
            if let Some(missing) = CCP_NAMES.iter().find(|name| !known(name)) {
                let found = parsing.classes.iter().take(8).cloned();
                return Err(TaskError::Mismatch {
                    file: parsing.file.display().to_string(),
                    expected: format!(
                        "the labels of Clothing Co-Parsing for task.classes = \"ccp_parts\", `{missing}` among them"
                    ),
                    found: format!("{}, ...", found.collect::<Vec<_>>().join(", ")),
                });
            }
            parsing.relabeled(&part::NAMES, ccp_parts)
        }
    })
}

/// The transform from the image to the network's input: the whole image, centered and padded to the
/// input's aspect; corners are centers of pixels. Sizes are height and width.
pub(super) fn input_from_image(
    [image_height, image_width]: [usize; 2],
    [height, width]: [usize; 2],
    scale: f64,
    degrees: f64,
) -> Affine {
    let (w, h) = ((image_width - 1) as f64, (image_height - 1) as f64);
    let aspect = width as f64 / height as f64;
    let wide = w.max(h * aspect) * scale;
    let zoom = (width - 1) as f64 / wide.max(1.0);
    let to = [(width - 1) as f64 / 2.0, (height - 1) as f64 / 2.0];
    Affine::about([w / 2.0, h / 2.0], to, [zoom, zoom], degrees)
}

/// An image and its label map, which must have the same size.
pub(super) fn read_pair(
    data: &ParsingDataset,
    image: &Path,
    mask: &Path,
) -> Result<(Rgb, LabelMap), TaskError> {
    let (picture, labels) = (read_image(image)?, data.read_mask(mask)?);
    if [picture.height, picture.width] != [labels.height, labels.width] {
        return Err(TaskError::Mismatch {
            file: mask.display().to_string(),
            expected: format!(
                "{}x{} (height x width) as its image",
                picture.height, picture.width
            ),
            found: format!("{}x{}", labels.height, labels.width),
        });
    }
    Ok((picture, labels))
}

impl TrainingExamples for ParsingTask {
    type TrainingSet = ParsingSet;

    fn open(
        config: &ParsingConfig,
        folder: &Path,
        _: Option<&SplitChoice>,
    ) -> Result<(Self, ParsingSet), TaskError> {
        let parsing = open_data(folder, config.classes)?;
        let mut images = Vec::new();
        for split in &config.train_splits {
            images.extend(parsing.split(split)?.into_iter().cloned());
        }
        let task = Self {
            config: config.clone(),
            flipped: (twins(&parsing.sides().pairs, parsing.classes.len()).into_iter())
                .map(|twin| twin as u8)
                .collect(),
            classes: parsing.classes.clone(),
        };
        let split = config.train_splits.join(" + ");
        let data = ParsingSet {
            parsing,
            images,
            split,
        };
        Ok((task, data))
    }

    fn notes(&self, data: &ParsingSet) -> Vec<String> {
        let (config, file) = (&self.config, data.parsing.file.display());
        let names = |classes: &[usize]| -> String {
            let names: Vec<&str> = classes
                .iter()
                .map(|class| self.classes[*class].as_str())
                .collect();
            names.join(", ")
        };
        let mut notes = Vec::new();
        let absent = data.parsing.absent(&data.images);
        // In black-and-white masks 255 is the ignore index, and a single class would be learned.
        if absent.len() + 1 == self.classes.len() && !absent.contains(&0) {
            let masks = data.images.iter().take(64).filter_map(|image| {
                let map = data.parsing.read_mask(&image.mask).ok()?;
                Some(map.present())
            });
            let mut present = [false; 256];
            masks.for_each(|mask| (0..256).for_each(|label| present[label] |= mask[label]));
            if is_black_and_white(&present) {
                notes.push(format!("{file}: {BLACK_AND_WHITE}"));
            }
        }
        if !absent.is_empty() {
            notes.push(format!(
                "{file}: no mask of split {} has a pixel of {}: these classes cannot be learned, and their IoU is 0 in mIoU",
                data.split,
                names(&absent)
            ));
        }
        let alone = data.parsing.sides().alone;
        if !alone.is_empty() && (config.flip > 0.0 || config.flip_test) {
            notes.push(format!(
                "{file}: there is no class for the other side of {}, so that flipped images have wrong labels: set task.flip = 0 and \
                 task.flip_test = false, or use one class for both sides",
                names(&alone)
            ));
        }
        notes
    }

    fn files<'a>(&self, data: &'a ParsingSet) -> Vec<&'a Path> {
        { data.images.iter() }
            .flat_map(|one| [one.image.as_path(), one.mask.as_path()])
            .collect()
    }

    fn count(&self, data: &ParsingSet) -> usize {
        data.images.len()
    }

    fn example(
        &self,
        data: &ParsingSet,
        index: usize,
        preprocess: &Preprocess,
        rng: &mut DataRng,
    ) -> Result<Example<ParsingTarget>, TaskError> {
        let config = &self.config;
        let MaskedImage { image, mask, .. } = &data.images[index];
        let key = image.display().to_string();
        let (image, labels) = read_pair(&data.parsing, image, mask)?;
        let limit = config.scale_limit;
        let scale = 1.0 + (f64::from(normal(rng)) * config.scale_std).clamp(-limit, limit);
        let turn = rng.random::<f64>() < config.rotation_probability;
        let degrees = f64::from(normal(rng)) * config.rotation_std;
        let degrees = degrees.clamp(-2.0 * config.rotation_std, 2.0 * config.rotation_std);
        let (height, width) = (preprocess.height, preprocess.width);
        let size = [image.height, image.width];
        let forward = input_from_image(
            size,
            [height, width],
            scale,
            if turn { degrees } else { 0.0 },
        );
        let back = forward.inverse();
        let mut image = warp(&image, &back, height, width, [0; 3]);
        let mut labels = warp_labels(&labels.labels, size, &back, height, width, IGNORE);
        if rng.random_bool(config.flip) {
            image = clasp_data::image::flip(&image);
            for row in labels.chunks_exact_mut(width) {
                row.reverse();
                for label in row.iter_mut().filter(|label| **label != IGNORE) {
                    *label = self.flipped[usize::from(*label)];
                }
            }
        }
        Ok(Example {
            pixels: preprocess.normalize(&image),
            size: [preprocess.height, preprocess.width],
            target: ParsingTarget {
                labels,
                size: [height, width],
            },
            key,
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use clasp_data::image::encode_label_png;
    use serde::Deserialize;

    /// A table of two images and masks, one in a subfolder, with a class that no mask has and a
    /// side without its counterpart.
    pub fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        fs_err::create_dir(at.join("a")).unwrap();
        fs_err::write(at.join("labels.txt"), "null\nLArm\nRArm\nleft shoe\n").unwrap();
        let table = "image,mask,split\n1.png,1.png,train\na/1.png,a/1.png,train\n";
        fs_err::write(at.join("parsing.csv"), table).unwrap();
        for (name, labels) in [("1.png", [0, 1]), ("a/1.png", [3, 0])] {
            fs_err::write(at.join(name), encode_label_png(&labels, 1, 2)).unwrap();
        }
        folder
    }

    #[test]
    fn the_parts_equal_the_standard_vocabulary() {
        let vocabulary = clasp_data::vocabulary::Vocabulary::standard().unwrap();
        let names: Vec<String> = vocabulary.parts.into_iter().map(|part| part.name).collect();
        assert_eq!(names, part::NAMES);
    }

    #[test]
    fn classes_that_cannot_be_learned_or_flipped_are_noted() {
        let folder = folder();
        let open = |config: &ParsingConfig| {
            let (task, data) = ParsingTask::open(config, folder.path(), None).unwrap();
            let notes = task.notes(&data);
            (task, notes)
        };
        let (task, notes) = open(&ParsingConfig::default());
        assert_eq!(task.flipped, [0, 2, 1, 3]);
        assert!(
            notes[0].contains("no mask of split train has a pixel of RArm:"),
            "{notes:?}"
        );
        assert!(
            notes[1].contains("the other side of left shoe, so"),
            "{notes:?}"
        );
        let still = ParsingConfig {
            flip: 0.0,
            flip_test: false,
            ..ParsingConfig::default()
        };
        assert_eq!(open(&still).1.len(), 1);
    }

    #[test]
    fn the_input_equals_the_published_code() {
        #[derive(Deserialize)]
        struct ParsingCase {
            image: [usize; 2],
            input: [usize; 2],
            scale: f64,
            degrees: f64,
            matrix: [[f64; 3]; 2],
        }
        #[derive(Deserialize)]
        struct ParsingGolden {
            parsing: Vec<ParsingCase>,
        }
        let golden: ParsingGolden =
            serde_json::from_str(include_str!("../../tests/golden/affine.json")).unwrap();
        for case in golden.parsing {
            let found = input_from_image(case.image, case.input, case.scale, case.degrees).0;
            for (found, expected) in found.iter().flatten().zip(case.matrix.iter().flatten()) {
                // OpenCV takes its points as f32.
                assert!((found - expected).abs() < 2e-3, "{found} {expected}");
            }
        }
    }

    /// The border of a mask was once lost: the image reached a pixel beyond the input.
    #[test]
    fn every_pixel_maps_into_the_input_and_back() {
        for size in [[100, 30], [40, 90], [64, 32], [120, 100], [300, 200]] {
            let (height, width) = (57, 38);
            let map = input_from_image(size, [height, width], 1.0, 0.0);
            for corner in [[0.0, 0.0], [(size[1] - 1) as f64, (size[0] - 1) as f64]] {
                let [x, y] = map.apply(corner);
                let inside =
                    |at: f64, length: usize| (-1e-9..=length as f64 - 1.0 + 1e-9).contains(&at);
                assert!(inside(x, width) && inside(y, height), "{size:?}: {x} {y}");
            }
            let labels = vec![1; height * width];
            let back = warp_labels(&labels, [height, width], &map, size[0], size[1], 0);
            assert!(back.iter().all(|label| *label == 1), "{size:?}");
        }
    }
}
