//! The multi-crop views of pre-training: random crops of an image with random changes of color,
//! and its part map cropped along.
//!
//! The order of operations is DINO's (Caron et al. 2021): crop and resize (bicubic), flip, color
//! jitter, gray, blur, solarize, normalize. The first global view is always blurred and never
//! solarized, the others as [`ViewsConfig`] says. Crops keep the aspect ratio of the view to
//! within a factor, as suits crops of upright people.
//!
//! To add an augmentation: a file in `augment/`, its keys in [`ViewsConfig`], and its random
//! numbers after all others of a view, so that recipes without it give the same views as before.
//!
//! Colors are computed in 32-bit floats from 0 to 1, clamped after each operation that can leave
//! that range: torchvision's operations on float tensors, where its 8-bit images round after each
//! one. The blur is a Gaussian, where Pillow's is three box filters that approximate one.
//!
//! All random draws come from the generator passed in, in a fixed order: the same generator, image
//! and configuration give the same views on any thread.
//!
//! Beside the views stand the augmentations of the tasks: [`warp`](mod@warp) turns and scales,
//! [`erase`](mod@erase) erases and shifts.

mod blur;
mod color;
pub(crate) mod crop;
mod draw;
pub mod erase;
pub mod warp;

use rand::RngExt;
use serde::{Deserialize, Serialize};

use crate::Rng;
use crate::image::{
    ByColumns, DEVIATIONS, Filter, IMAGENET_MEAN, IMAGENET_STD, MEANS, ResizeScratch, Rgb,
};
use crate::labels::{GridLabels, ViewLabels};
use color::ColorOperation;
use crop::{CropBox, GridCrop};
use draw::{happens, uniform};

pub use erase::{erase, shift};
pub use warp::{Affine, warp, warp_labels};

/// The views to make of an image. Probabilities are from 0 to 1; sizes are `[height, width]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ViewsConfig {
    /// Number of global views.
    pub global: usize,
    /// Number of local views.
    pub local: usize,
    /// Size of a global view, `[height, width]`.
    pub global_size: [usize; 2],
    /// Size of a local view, `[height, width]`.
    pub local_size: [usize; 2],
    /// Share of the image's area that a global crop covers, `[least, most]`.
    pub global_scale: [f32; 2],
    /// Share of the image's area that a local crop covers, `[least, most]`.
    pub local_scale: [f32; 2],
    /// A crop's width over its height is the view's times a factor in `[least, most]`.
    pub ratio: [f32; 2],
    /// Probability of a flip, left to right.
    pub flip: f32,
    /// Probability of the color jitter.
    pub jitter: f32,
    /// Brightness is multiplied by a factor within 1 +- this.
    pub brightness: f32,
    /// Contrast is multiplied by a factor within 1 +- this.
    pub contrast: f32,
    /// Saturation is multiplied by a factor within 1 +- this.
    pub saturation: f32,
    /// Hue is shifted by up to this share of the color circle, to either side; at most 0.5.
    pub hue: f32,
    /// Probability of a grayscale view.
    pub grayscale: f32,
    /// Probability of a blur: of the first global view, of the other global views, of local views.
    pub blur: [f32; 3],
    /// Standard deviation of the blur in pixels of the view, `[least, most]`.
    pub blur_sigma: [f32; 2],
    /// Probability of a solarized view, among the global ones but the first.
    pub solarize: f32,
    /// Mean of each channel that is subtracted at the end, on the scale 0 to 1.
    pub mean: [f32; 3],
    /// Standard deviation of each channel that is divided by at the end.
    pub std: [f32; 3],
}

impl Default for ViewsConfig {
    fn default() -> Self {
        Self {
            global: 2,
            local: 8,
            global_size: [256, 128],
            local_size: [128, 64],
            global_scale: [0.8, 1.0],
            local_scale: [0.05, 0.8],
            ratio: [0.8, 1.2],
            flip: 0.5,
            jitter: 0.8,
            brightness: 0.4,
            contrast: 0.4,
            saturation: 0.2,
            hue: 0.1,
            grayscale: 0.2,
            blur: [1.0, 0.1, 0.5],
            blur_sigma: [0.1, 2.0],
            solarize: 0.2,
            mean: IMAGENET_MEAN,
            std: IMAGENET_STD,
        }
    }
}

/// An invalid value of [`ViewsConfig`].
#[derive(Debug, thiserror::Error, PartialEq)]
#[error("views.{field}: expected {expected}, found {found}")]
pub struct ViewsError {
    /// The field.
    pub field: &'static str,
    /// What it may be.
    pub expected: &'static str,
    /// What it is.
    pub found: String,
}

/// Longest side of a view in pixels; a guard against mistakes in a recipe.
const LONGEST: usize = 4096;

/// Most views of each kind; a guard against mistakes in a recipe.
const MOST_VIEWS: usize = 64;

/// Widest blur; the kernel reaches three times as far.
const WIDEST_BLUR: f32 = 64.0;

impl ViewsConfig {
    /// Checks that every value is valid.
    ///
    /// # Errors
    ///
    /// The first field that is not, with its valid range.
    pub fn check(&self) -> Result<(), ViewsError> {
        let fail = |field, expected, found: String| {
            Err(ViewsError {
                field,
                expected,
                found,
            })
        };
        if !(1..=MOST_VIEWS).contains(&self.global) {
            return fail("global", "1 to 64 views", self.global.to_string());
        }
        if self.local > MOST_VIEWS {
            return fail("local", "0 to 64 views", self.local.to_string());
        }
        for (field, size) in [
            ("global_size", self.global_size),
            ("local_size", self.local_size),
        ] {
            if !size.iter().all(|side| (1..=LONGEST).contains(side)) {
                return fail(
                    field,
                    "height and width of 1 to 4096 pixels",
                    format!("{size:?}"),
                );
            }
        }
        for (field, [least, most]) in [
            ("global_scale", self.global_scale),
            ("local_scale", self.local_scale),
        ] {
            if !(0.0 < least && least <= most && most <= 1.0) {
                return fail(
                    field,
                    "0 < least <= most <= 1",
                    format!("{:?}", [least, most]),
                );
            }
        }
        let [least, most] = self.ratio;
        if !(0.01 <= least && least <= most && most <= 100.0) {
            return fail(
                "ratio",
                "0.01 <= least <= most <= 100",
                format!("{:?}", self.ratio),
            );
        }
        let [first, others, local] = self.blur;
        for (field, p) in [
            ("flip", self.flip),
            ("jitter", self.jitter),
            ("grayscale", self.grayscale),
            ("blur", first),
            ("blur", others),
            ("blur", local),
            ("solarize", self.solarize),
            ("brightness", self.brightness),
            ("contrast", self.contrast),
            ("saturation", self.saturation),
        ] {
            if !(0.0..=1.0).contains(&p) {
                return fail(field, "0 to 1", p.to_string());
            }
        }
        if !(0.0..=0.5).contains(&self.hue) {
            return fail("hue", "0 to 0.5", self.hue.to_string());
        }
        let [least, most] = self.blur_sigma;
        if !(0.0 < least && least <= most && most <= WIDEST_BLUR) {
            return fail(
                "blur_sigma",
                "0 < least <= most <= 64",
                format!("{:?}", self.blur_sigma),
            );
        }
        if !self.mean.iter().all(|mean| MEANS.contains(mean)) {
            return fail("mean", "-1000 to 1000", format!("{:?}", self.mean));
        }
        if !self.std.iter().all(|std| DEVIATIONS.contains(std)) {
            return fail("std", "0.0001 to 1000", format!("{:?}", self.std));
        }
        Ok(())
    }
}

/// A view of an image, ready for the network.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// Height in pixels.
    pub height: usize,
    /// Width in pixels.
    pub width: usize,
    /// `[3, height, width]`, less the mean and over the standard deviation.
    pub pixels: Vec<f32>,
    /// The labels at each position of the backbone's output. Global views have them where the image
    /// has labels, local views never.
    pub labels: Option<ViewLabels>,
}

/// The views of one image.
#[derive(Clone, Debug, PartialEq)]
pub struct Views {
    /// Large crops, which teacher and student see.
    pub global: Vec<View>,
    /// Small crops, which the student alone sees.
    pub local: Vec<View>,
}

/// The kinds of views, which differ in size and augmentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ViewKind {
    First,
    Global,
    Local,
}

/// Makes the views of an image.
///
/// - `labels`: those of the whole image.
/// - `output_grid`: rows and columns of the backbone's feature map of a global view, to which
///   labels are resampled by nearest neighbor.
///
/// ```
/// use clasp_data::augment::{ViewsConfig, views};
/// use clasp_data::image::Rgb;
///
/// let image = Rgb::filled(64, 128, [90, 120, 150]);
/// let config = ViewsConfig { global_size: [128, 64], ..ViewsConfig::default() };
/// let made = views(&image, None, &config, [4, 2], &mut clasp_data::rng_for(0, 0, "a.jpg"));
/// assert_eq!(made.global.len(), config.global);
/// assert_eq!(made.global[0].pixels.len(), 3 * 128 * 64);
/// ```
///
/// # Panics
///
/// Where `config` does not pass [`ViewsConfig::check`], the image has no pixels, or there are not
/// rows x columns labels.
pub fn views(
    image: &Rgb,
    labels: Option<GridLabels<'_>>,
    config: &ViewsConfig,
    output_grid: [usize; 2],
    rng: &mut Rng,
) -> Views {
    if let Err(error) = config.check() {
        panic!("{error}");
    }
    let mut scratch = ViewScratch::default();
    let image = ByColumns::whole(image);
    let mut make = |kind, labels: Option<&GridLabels<'_>>| {
        view(&image, labels, config, output_grid, kind, rng, &mut scratch)
    };
    let kind = |i| {
        if i == 0 {
            ViewKind::First
        } else {
            ViewKind::Global
        }
    };
    Views {
        global: (0..config.global)
            .map(|i| make(kind(i), labels.as_ref()))
            .collect(),
        local: (0..config.local)
            .map(|_| make(ViewKind::Local, None))
            .collect(),
    }
}

/// Buffers of a view, reused by the next one.
#[derive(Default)]
struct ViewScratch {
    resize: ResizeScratch,
    blur: Vec<f32>,
}

fn view(
    image: &ByColumns,
    labels: Option<&GridLabels<'_>>,
    config: &ViewsConfig,
    output_grid: [usize; 2],
    kind: ViewKind,
    rng: &mut Rng,
    scratch: &mut ViewScratch,
) -> View {
    let ([height, width], scale) = match kind {
        ViewKind::Local => (config.local_size, config.local_scale),
        _ => (config.global_size, config.global_scale),
    };
    let [image_height, image_width] = image.size;
    let target_ratio = width as f32 / height as f32;
    let ratio = config.ratio.map(|factor| factor * target_ratio);
    let crop = CropBox::draw(image_width, image_height, scale, ratio, rng);
    let changes = ViewChanges::draw(config, kind, rng);

    let pixels = render(
        image,
        &crop,
        &changes,
        [height, width],
        config.mean,
        config.std,
        scratch,
    );
    let labels = labels.map(|labels| {
        let grid = [labels.rows, labels.columns];
        labels.crop(&GridCrop::new(
            &crop,
            changes.flip,
            image.size,
            grid,
            output_grid,
        ))
    });
    View {
        height,
        width,
        pixels,
        labels,
    }
}

/// Crops, resizes and changes an image: `[3, height, width]`.
fn render(
    image: &ByColumns,
    crop: &CropBox,
    changes: &ViewChanges,
    [height, width]: [usize; 2],
    mean: [f32; 3],
    std: [f32; 3],
    scratch: &mut ViewScratch,
) -> Vec<f32> {
    let mut pixels = Vec::with_capacity(3 * height * width);
    // The flip commutes with everything that follows, and costs nothing where pixels are moved.
    image.resize_crop(
        crop.xywh(),
        [height, width],
        Filter::Bicubic,
        changes.flip,
        &mut scratch.resize,
        |_, _, _, lanes| pixels.extend(lanes.iter().map(|value| value * (1.0 / 255.0))),
    );
    color::apply(&mut pixels, &changes.colors);
    if let Some(sigma) = changes.blur {
        blur::gaussian(&mut pixels, height, width, sigma, &mut scratch.blur);
    }
    color::finish(&mut pixels, changes.solarize, mean, std);
    pixels
}

/// The random changes of one view after the crop.
#[derive(Clone, Debug, PartialEq)]
struct ViewChanges {
    flip: bool,
    colors: Vec<ColorOperation>,
    /// Standard deviation in pixels.
    blur: Option<f32>,
    solarize: bool,
}

impl ViewChanges {
    fn draw(config: &ViewsConfig, kind: ViewKind, rng: &mut Rng) -> Self {
        let flip = happens(config.flip, rng);
        let mut colors = Vec::with_capacity(5);
        if happens(config.jitter, rng) {
            let around_one =
                |spread: f32, rng: &mut Rng| uniform([1.0 - spread, 1.0 + spread], rng);
            colors.extend([
                ColorOperation::Brightness(around_one(config.brightness, rng)),
                ColorOperation::Contrast(around_one(config.contrast, rng)),
                ColorOperation::Saturation(around_one(config.saturation, rng)),
                ColorOperation::Hue(uniform([-config.hue, config.hue], rng)),
            ]);
            // Fisher and Yates.
            for last in (1..colors.len()).rev() {
                colors.swap(last, rng.random_range(0..=last));
            }
        }
        if happens(config.grayscale, rng) {
            colors.push(ColorOperation::Gray);
        }
        let blur_probability = match kind {
            ViewKind::First => config.blur[0],
            ViewKind::Global => config.blur[1],
            ViewKind::Local => config.blur[2],
        };
        let blur = happens(blur_probability, rng).then(|| uniform(config.blur_sigma, rng));
        let solarize = kind == ViewKind::Global && happens(config.solarize, rng);
        Self {
            flip,
            colors,
            blur,
            solarize,
        }
    }
}

/// True with this probability. One draw, whatever the probability, so that changing it does not
/// move the draws that follow.
#[cfg(test)]
mod tests;
