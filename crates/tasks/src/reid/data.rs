//! Training images of re-identification: identities, held-out identities, batches of P identities
//! with K images each.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use clasp_data::Rng as DataRng;
use clasp_data::augment::{erase, shift};
use clasp_data::image::{flip, resize};
use clasp_data::layouts::reid::{MsmtVal, ReidDataset, ReidImage};
use clasp_data::rng_for;
use rand::RngExt;
use rand::seq::SliceRandom;

use super::{MsmtValidation, ReidConfig, ReidTask};
use crate::TaskError;
use crate::features::{Preprocess, read_image};
use crate::task::check::setting;
use crate::task::{Example, SplitChoice, TrainingExamples};

/// Training images with the class of each.
#[derive(Debug)]
pub struct ReidTrainingSet {
    crops: Vec<(PathBuf, usize)>,
    /// Positions in `crops` of each class.
    images: Vec<Vec<u32>>,
}

pub(super) fn open(folder: &Path, config: &ReidConfig) -> Result<ReidDataset, TaskError> {
    let msmt_val = match config.msmt_val {
        MsmtValidation::Train => MsmtVal::Train,
        MsmtValidation::Holdout => MsmtVal::Holdout,
    };
    Ok(ReidDataset::open_with(folder, msmt_val)?)
}

/// The identities that are held out: a fraction of them, evenly spaced.
pub(super) fn held_out(train: &[ReidImage], share: f64) -> BTreeSet<i64> {
    let people: BTreeSet<i64> = { train.iter() }
        .map(|crop| crop.person)
        .filter(|person| *person > 0)
        .collect();
    let people: Vec<i64> = people.into_iter().collect();
    let count = (share.clamp(0.0, 1.0) * people.len() as f64).ceil() as usize;
    (0..count)
        .map(|i| people[i * people.len() / count])
        .collect()
}

/// Batches of P identities with K images each, as one list of `length` images, after the published
/// sampler (Hermans et al. 2017, as in TransReID): the images of each identity are shuffled and cut
/// into groups of K (drawn with replacement where there are fewer than K); a batch takes a group of
/// each of P random identities that have one left. When fewer than P are left, all images are
/// shuffled again.
fn batches_of_identities(
    images: &[Vec<u32>],
    p: usize,
    k: usize,
    length: usize,
    rng: &mut DataRng,
) -> Vec<u32> {
    let mut row = Vec::with_capacity(length);
    while row.len() < length {
        let mut groups: Vec<Vec<Vec<u32>>> = Vec::with_capacity(images.len());
        for images in images {
            let shuffled: Vec<u32> = if images.len() < k {
                (0..k)
                    .map(|_| images[rng.random_range(0..images.len())])
                    .collect()
            } else {
                let mut order = images.clone();
                order.shuffle(rng);
                order
            };
            groups.push(shuffled.chunks_exact(k).map(<[u32]>::to_vec).collect());
        }
        let mut left: Vec<usize> = (0..images.len()).collect();
        while left.len() >= p && row.len() < length {
            left.shuffle(rng);
            for &identity in &left[..p] {
                row.extend(groups[identity].pop().unwrap_or_default());
            }
            left.retain(|identity| !groups[*identity].is_empty());
        }
    }
    row.truncate(length);
    row
}

impl TrainingExamples for ReidTask {
    type TrainingSet = ReidTrainingSet;

    fn open(
        config: &ReidConfig,
        folder: &Path,
        selection: Option<&SplitChoice>,
    ) -> Result<(Self, ReidTrainingSet), TaskError> {
        let market = open(folder, config)?;
        let held = held_out(&market.train, config.holdout);
        if selection == Some(&SplitChoice::Val) && held.is_empty() && market.val.is_empty() {
            let expected = "a fraction above 0 for `run.checkpoint_selection = \"val\"`: there is no other validation split";
            return Err(setting("task.holdout", expected, config.holdout));
        }
        if config.instances == 0 {
            return Err(setting("task.instances", "at least 1", 0));
        }
        let crops: Vec<&ReidImage> = { market.train.iter() }
            .filter(|crop| crop.person > 0 && !held.contains(&crop.person))
            .collect();
        let identities: BTreeSet<i64> = crops.iter().map(|crop| crop.person).collect();
        let identities: Vec<i64> = identities.into_iter().collect();
        let class: BTreeMap<i64, usize> = { identities.iter().enumerate() }
            .map(|(class, person)| (*person, class))
            .collect();
        let mut images = vec![Vec::new(); identities.len()];
        for (position, crop) in crops.iter().enumerate() {
            images[class[&crop.person]].push(position as u32);
        }
        let place = format!("training images of {}", market.root.display());
        if identities.len() < 2 {
            return Err(TaskError::TooFew {
                what: place,
                expected: "images of at least 2 people to train on",
                found: identities.len(),
            });
        }
        if images.iter().all(|images| images.len() < 2) {
            return Err(TaskError::Mismatch {
                file: place,
                expected: "people with at least 2 images each, which triplets need".to_owned(),
                found: format!("1 image of each of {} people", identities.len()),
            });
        }
        let crops = { crops.iter() }
            .map(|crop| (crop.path.clone(), class[&crop.person]))
            .collect();
        let task = Self {
            config: config.clone(),
            identities,
            same_person: None,
        };
        Ok((task, ReidTrainingSet { crops, images }))
    }

    fn files<'a>(&self, data: &'a ReidTrainingSet) -> Vec<&'a Path> {
        { data.crops.iter() }
            .map(|(path, _)| path.as_path())
            .collect()
    }

    fn count(&self, data: &ReidTrainingSet) -> usize {
        // Whole groups of K, as the published sampler counts; an identity with fewer images is one
        // group.
        let k = self.config.instances;
        let groups = |images: &Vec<u32>| (images.len() / k).max(1) * k;
        data.images.iter().map(groups).sum()
    }

    fn epoch_order(
        &self,
        data: &ReidTrainingSet,
        batch: usize,
        seed: u64,
        epoch: u64,
    ) -> Option<Vec<u32>> {
        let mut rng = rng_for(seed, epoch, "identities of batches");
        let k = self.config.instances;
        let order = batches_of_identities(&data.images, batch / k, k, self.count(data), &mut rng);
        Some(order)
    }

    fn check_batch(&self, data: &ReidTrainingSet, batch: usize) -> Result<(), TaskError> {
        let k = self.config.instances;
        let (identities, people) = (batch / k, data.images.len());
        if !batch.is_multiple_of(k) || identities < 2 || identities > people {
            let expected =
                format!("a multiple of task.instances = {k} for 2 to {people} training identities");
            return Err(setting("run.batch", &expected, batch));
        }
        Ok(())
    }

    fn example(
        &self,
        data: &ReidTrainingSet,
        index: usize,
        preprocess: &Preprocess,
        rng: &mut DataRng,
    ) -> Result<Example<usize>, TaskError> {
        let (path, class) = &data.crops[index];
        let config = &self.config;
        let image = read_image(path)?;
        let image = resize(
            &image,
            preprocess.height,
            preprocess.width,
            preprocess.filter,
        );
        let image = if rng.random_bool(config.flip) {
            flip(&image)
        } else {
            image
        };
        let image = shift(&image, config.padding, rng);
        let mut pixels = preprocess.normalize(&image);
        erase(
            &mut pixels,
            preprocess.height,
            preprocess.width,
            config.random_erasing as f32,
            rng,
        );
        Ok(Example {
            pixels,
            size: [preprocess.height, preprocess.width],
            target: *class,
            key: path.display().to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_p_identities_with_k_images_each() {
        // Identity i has i + 1 images.
        let mut next = 0;
        let images: Vec<Vec<u32>> = (1..=9)
            .map(|count| {
                next += count;
                (next - count..next).collect()
            })
            .collect();
        let owner = |image: u32| {
            images
                .iter()
                .position(|list| list.contains(&image))
                .unwrap()
        };
        let order = |seed| batches_of_identities(&images, 3, 2, 40, &mut rng_for(seed, 0, "t"));
        let row = order(1);
        assert_eq!(row.len(), 40);
        for batch in row.chunks_exact(6) {
            let owners: Vec<usize> = batch.chunks_exact(2).map(|group| owner(group[0])).collect();
            assert_eq!(
                owners.iter().collect::<BTreeSet<_>>().len(),
                3,
                "{owners:?}"
            );
            assert!(
                batch
                    .chunks_exact(2)
                    .all(|group| owner(group[0]) == owner(group[1]))
            );
        }
        assert_eq!(row, order(1));
        assert_ne!(row, order(2));
    }

    #[test]
    fn held_out_identities_are_evenly_spaced() {
        let crop = |person| ReidImage {
            path: PathBuf::new(),
            name: String::new(),
            person,
            camera: 1,
        };
        let train: Vec<ReidImage> = (0..=10).map(crop).collect();
        assert_eq!(held_out(&train, 0.2), BTreeSet::from([1, 6]));
        assert!(held_out(&train, 0.0).is_empty());
    }
}
