//! A fake backbone, and small datasets of colored shapes.

use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::path::Path;

use clasp_data::image::{Rgb, encode_png};
use fs_err as fs;

use crate::TaskError;
use crate::features::{Extractor, FeatureBatch, FeatureMaps, InputBatch, PassProgress};

/// Ignores progress.
pub fn quiet(_: PassProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Features without a network.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fake {
    /// Mean colors: of blocks of 8 and 16 pixels as maps; of the upper and lower half as the pooled
    /// feature.
    Colors,
    /// Random numbers seeded by the pixels.
    Noise,
    /// Not a number.
    Nan,
}

impl Extractor for Fake {
    fn extract(&self, images: InputBatch, stages: usize) -> Result<FeatureBatch, TaskError> {
        let InputBatch {
            batch,
            height,
            width,
            ..
        } = images;
        let maps = |block_height: usize, block_width: usize| FeatureMaps {
            values: self.blocks(&images, block_height, block_width),
            channels: 3,
            height: height / block_height,
            width: width / block_width,
        };
        let stages = [maps(8, 8), maps(16, 16)]
            .into_iter()
            .skip(2_usize.saturating_sub(stages));
        let pooled = maps(height / 2, width).values;
        assert_eq!(pooled.len(), batch * 6);
        Ok(FeatureBatch {
            pooled,
            maps: stages.collect(),
        })
    }
}

impl Fake {
    /// Means over blocks, `[batch, 3, rows, columns]`.
    fn blocks(self, images: &InputBatch, block_height: usize, block_width: usize) -> Vec<f32> {
        let InputBatch {
            values,
            height,
            width,
            ..
        } = images;
        let mut blocks = Vec::new();
        for (index, plane) in values.chunks_exact(height * width).enumerate() {
            // The same image gives the same noise, whatever its batch.
            let image = &values[index / 3 * 3 * height * width..][..3 * height * width];
            let seed = image.iter().fold(index % 3, |seed, value| {
                draw(seed ^ value.to_bits() as usize, 1 << 31)
            });
            for row in (0..*height).step_by(block_height) {
                for column in (0..*width).step_by(block_width) {
                    let lines = plane.chunks_exact(*width).skip(row).take(block_height);
                    let mean = lines
                        .flat_map(|line| &line[column..column + block_width])
                        .sum::<f32>();
                    let mean = mean / (block_height * block_width) as f32;
                    blocks.push(match self {
                        Fake::Colors => mean,
                        Fake::Noise => draw(seed ^ (row * 1000 + column), 1000) as f32 / 1000.0,
                        Fake::Nan => f32::NAN,
                    });
                }
            }
        }
        blocks
    }
}

/// An image of one color.
pub fn image(color: [u8; 3], width: usize, height: usize) -> Rgb {
    Rgb::filled(width, height, color)
}

fn paint(image: &mut Rgb, x: usize, y: usize, width: usize, height: usize, color: [u8; 3]) {
    for row in y..(y + height).min(image.height) {
        for column in x..(x + width).min(image.width) {
            let start = 3 * (row * image.width + column);
            image.pixels[start..start + 3].copy_from_slice(&color);
        }
    }
}

/// A pseudo-random number below `limit`.
fn draw(seed: usize, limit: usize) -> usize {
    let mixed = (seed as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 33) as usize % limit
}

/// Writes a dataset for every task into `folder`: 12 people in two colors each by 3 cameras; 160
/// images, 120 of them for training, with two attributes (colors of the halves), masks of three of
/// four classes, and two joints.
pub fn people(folder: &Path) {
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    for person in 0..12 {
        for camera in 0..3 {
            for shot in 0..4 {
                let shade = (draw(person * 100 + camera * 10 + shot, 12)) as u8;
                let mut picture = image(
                    [20 + (person % 4) as u8 * 70 + shade, 100, 30 + shade],
                    32,
                    64,
                );
                paint(
                    &mut picture,
                    0,
                    32,
                    32,
                    32,
                    [60, (person / 4) as u8 * 90 + shade, 200],
                );
                // No two images are equal.
                paint(
                    &mut picture,
                    31,
                    63,
                    1,
                    1,
                    [person as u8, camera as u8, shot as u8],
                );
                let place = if camera == 0 && shot == 0 {
                    "query"
                } else {
                    "bounding_box_test"
                };
                write(
                    &format!(
                        "market/{place}/{:04}_c{}s1_{shot:06}_00.png",
                        person + 1,
                        camera + 1
                    ),
                    &encode_png(&picture),
                );
            }
        }
    }

    let mut attributes = "image,split,red upper,blue lower\n".to_owned();
    let mut parsing = "image,mask,split\n".to_owned();
    let (mut images, mut annotations) = (
        [String::new(), String::new()],
        [String::new(), String::new()],
    );
    for i in 0..160 {
        let split = usize::from(i >= 120);
        let name = ["train", "val"][split];
        let (red, blue) = (draw(i, 3) == 0, draw(i + 1000, 2) == 0);
        let mut picture = image([90, 90 + draw(i + 2000, 40) as u8, 90], 32, 64);
        paint(
            &mut picture,
            0,
            0,
            32,
            32,
            if red { [200, 60, 60] } else { [80, 90, 70] },
        );
        paint(
            &mut picture,
            0,
            32,
            32,
            32,
            if blue { [40, 40, 220] } else { [120, 120, 60] },
        );
        paint(&mut picture, 31, 63, 1, 1, [i as u8; 3]);
        write(&format!("images/a{i:03}.jpg"), &encode_png(&picture));
        writeln!(
            attributes,
            "images/a{i:03}.jpg,{name},{},{}",
            u8::from(red),
            u8::from(blue)
        )
        .unwrap();

        // Black background, a white block of class 1 over a red block of class 2, on block borders.
        let (mut picture, mut mask) = (image([0, 0, 0], 32, 64), image([0, 0, 0], 32, 64));
        let (x, y) = (8 * draw(i + 3000, 3), 8 * draw(i + 4000, 5));
        for (top, color, class) in [(y, [255, 255, 255], 1), (y + 16, [255, 0, 0], 2)] {
            paint(&mut picture, x, top, 16, 16, color);
            paint(&mut mask, x, top, 16, 16, [class; 3]);
        }
        write(&format!("parsed/b{i:03}.png"), &encode_png(&picture));
        let labels: Vec<u8> = mask.pixels.iter().step_by(3).copied().collect();
        write(&format!("masks/b{i:03}.png"), &gray_png(&labels, 32, 64));
        writeln!(parsing, "parsed/b{i:03}.png,masks/b{i:03}.png,{name}").unwrap();

        // A red and a blue spot on black; the box is the image, so that the view is padded.
        let mut picture = image([0, 0, 0], 32, 64);
        let mut joints = Vec::new();
        for (joint, color) in [(0, [255, 0, 0]), (1, [0, 0, 255])] {
            let (x, y) = (
                draw(i + 5000 + joint * 500, 24),
                32 * joint + draw(i + 6000 + joint * 500, 24),
            );
            paint(&mut picture, x, y, 8, 8, color);
            joints.push(format!("{},{},2", x + 4, y + 4));
        }
        write(&format!("posed/c{i:03}.png"), &encode_png(&picture));
        let comma = if images[split].is_empty() { "" } else { "," };
        write!(
            images[split],
            r#"{comma}{{"id":{i},"file_name":"../posed/c{i:03}.png","width":32,"height":64}}"#
        )
        .unwrap();
        write!(
            annotations[split],
            r#"{comma}{{"id":{i},"image_id":{i},"category_id":1,"bbox":[0,0,32,64],"area":2048,"keypoints":[{}]}}"#,
            joints.join(",")
        )
        .unwrap();
    }
    write("attributes.csv", attributes.as_bytes());
    write("parsing.csv", parsing.as_bytes());
    write("labels.txt", b"background\nwhite\nred\nnever\n");
    for (split, name) in ["train", "val"].into_iter().enumerate() {
        let json = format!(
            r#"{{"images":[{}],"annotations":[{}],"categories":[{{"id":1,"keypoints":["red","blue"],"sigmas":[0.1,0.1]}}]}}"#,
            images[split], annotations[split]
        );
        write(&format!("person_keypoints_{name}.json"), json.as_bytes());
    }
}

/// A PNG with one channel.
fn gray_png(labels: &[u8], width: u32, height: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::Eight);
    encoder
        .write_header()
        .unwrap()
        .write_image_data(labels)
        .unwrap();
    bytes
}
