//! Resizing with the arithmetic of Pillow, bit for bit.
//!
//! Models trained in Python saw images that Pillow resized; a different rounding shifts their
//! features. Pillow resizes 8-bit images in two passes, first along rows, then along columns, and
//! rounds to 8 bits after each. Pillow 13 takes columns first where that is cheaper, which
//! changes some pixels by a level or two; the order here is that of Pillow up to 12.
//!
//! An output pixel x of an axis with `scale` input pixels per output pixel is the weighted mean of
//! the input pixels around `(x + 1/2) * scale`:
//!
//! ```text
//! weight(i) = filter((i + 1/2 - (x + 1/2) * scale) / max(scale, 1)), normalized to sum 1
//! ```
//!
//! so that the filter widens when the image shrinks ("antialiased"). Weights are rounded to fixed
//! point with 22 fractional bits: 8 bits for the pixel and 2 for overshoot remain of 32.
//!
//! Both passes run over contiguous lanes, 64 rows at once along rows and 64 columns at once along
//! columns; between them a plane is transposed. They are compiled for the widest vectors of the
//! machine they run on, and sum whole numbers that `f32` holds exactly, so that the result does not
//! depend on that choice.

mod passes;
mod span;
mod taps;
mod transpose;

use span::Span;

use super::filter::Filter;
use super::rgb::Rgb;

pub(crate) use passes::{ByColumns, ResizeScratch};

/// Resizes to `height` x `width`, as Pillow's `image.resize((width, height), filter)`.
///
/// # Panics
/// If `height` or `width` is 0.
pub fn resize(image: &Rgb, height: usize, width: usize, filter: Filter) -> Rgb {
    let whole = [0, 0, image.width, image.height];
    resize_crop(image, whole, height, width, filter)
}

/// Resizes a rectangle of the image, as Pillow's `image.crop(..).resize((width, height), filter)`,
/// without copying the rectangle. Pixels outside of it have no influence.
///
/// `crop_xywh`: left, top, width, height in whole pixels, inside the image.
///
/// # Panics
/// If the rectangle is empty or not inside the image, or `height` or `width` is 0.
pub fn resize_crop(
    image: &Rgb,
    crop_xywh: [usize; 4],
    height: usize,
    width: usize,
    filter: Filter,
) -> Rgb {
    let [x, y, w, h] = crop_xywh;
    assert!(
        w > 0 && h > 0 && x + w <= image.width && y + h <= image.height,
        "crop {crop_xywh:?} (xywh) is not inside an image of {} x {} (width x height)",
        image.width,
        image.height
    );
    let columns = Span::whole(x, w);
    let rows = Span::whole(y, h);
    resample(image, columns, rows, height, width, filter)
}

/// Resizes a rectangle given to fractions of a pixel, as Pillow's
/// `image.resize((width, height), filter, box=...)`. Unlike in [`resize_crop`], the filter reads
/// pixels outside of the rectangle where it reaches over its border.
///
/// `box_xywh`: left, top, width, height in pixels, inside the image.
///
/// # Panics
/// If the rectangle is empty or not inside the image, or `height` or `width` is 0.
pub fn resize_box(
    image: &Rgb,
    box_xywh: [f32; 4],
    height: usize,
    width: usize,
    filter: Filter,
) -> Rgb {
    let [x, y, w, h] = box_xywh;
    let inside = |start: f32, length: f32, limit: usize| {
        start >= 0.0 && length > 0.0 && start + length <= limit as f32
    };
    assert!(
        inside(x, w, image.width) && inside(y, h, image.height),
        "box {box_xywh:?} (xywh) is not inside an image of {} x {} (width x height)",
        image.width,
        image.height
    );
    let columns = Span {
        offset: 0,
        length: image.width,
        start: x,
        end: x + w,
    };
    let rows = Span {
        offset: 0,
        length: image.height,
        start: y,
        end: y + h,
    };
    resample(image, columns, rows, height, width, filter)
}

fn resample(
    image: &Rgb,
    columns: Span,
    rows: Span,
    height: usize,
    width: usize,
    filter: Filter,
) -> Rgb {
    assert!(
        height > 0 && width > 0,
        "cannot resize to {height} x {width} (height x width)"
    );
    if filter == Filter::Nearest {
        return nearest(image, columns, rows, height, width);
    }
    if columns.is_identity(width) && rows.is_identity(height) {
        let of_row = |y| &image.row(rows.offset + y)[3 * columns.offset..][..3 * width];
        return Rgb::new(
            width,
            height,
            (0..height).flat_map(of_row).copied().collect(),
        );
    }
    let by_columns = ByColumns::new(image, columns, rows);
    let mut pixels = vec![0; 3 * height * width];
    by_columns.resize(
        columns,
        rows,
        [height, width],
        filter,
        false,
        &mut ResizeScratch::default(),
        |channel, y, x, lanes| {
            let row = &mut pixels[3 * (y * width + x)..];
            for (pixel, lane) in row.chunks_exact_mut(3).zip(lanes) {
                pixel[channel] = *lane as u8;
            }
        },
    );
    Rgb::new(width, height, pixels)
}

fn nearest(image: &Rgb, columns: Span, rows: Span, height: usize, width: usize) -> Rgb {
    let x_of = nearest_inputs(columns, width);
    let y_of = nearest_inputs(rows, height);
    let mut pixels = Vec::with_capacity(3 * height * width);
    for y in y_of {
        for &x in &x_of {
            pixels.extend_from_slice(&image.pixel(x, y));
        }
    }
    Rgb::new(width, height, pixels)
}

/// The input pixel under the center of each output pixel. Pillow steps by repeated addition, whose
/// rounding decides ties.
fn nearest_inputs(span: Span, size: usize) -> Vec<usize> {
    let scale = span.scale(size);
    let mut position = f64::from(span.start) + scale * 0.5;
    let inputs = (0..size).map(|_| {
        let input = (position as usize).min(span.length - 1);
        position += scale;
        span.offset + input
    });
    inputs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{self, CLIP_MEAN, CLIP_STD};
    use proptest::prelude::*;
    use safetensors::SafeTensors;

    const GOLDEN: &[u8] = include_bytes!("../../../tests/golden/resize.safetensors");
    const GOLDEN_CLIP: &[u8] = include_bytes!("../../../tests/golden/clip_preprocess.safetensors");

    fn rgb(tensors: &SafeTensors, name: &str) -> Rgb {
        let view = tensors.tensor(name).unwrap();
        let [height, width, 3] = *view.shape() else {
            panic!("{name}: shape {:?}", view.shape());
        };
        Rgb::new(width, height, view.data().to_vec())
    }

    /// Every tensor besides the source is named `how|filter|x,y,w,h|size` and has the output's
    /// shape.
    #[test]
    fn equals_pillow_bit_for_bit() {
        let tensors = SafeTensors::deserialize(GOLDEN).unwrap();
        let source = rgb(&tensors, "source");
        let mut cases = 0;
        for name in tensors.names() {
            let parts: Vec<&str> = name.split('|').collect();
            let [how, filter, area, _] = parts[..] else {
                continue;
            };
            let expected = rgb(&tensors, name);
            let filter: Filter = filter.parse().unwrap();
            let area: Vec<f32> = area.split(',').map(|v| v.parse().unwrap()).collect();
            let area: [f32; 4] = area.try_into().unwrap();
            let (h, w) = (expected.height, expected.width);
            let actual = match how {
                "crop" => resize_crop(&source, area.map(|v| v as usize), h, w, filter),
                _ => resize_box(&source, area, h, w, filter),
            };
            assert!(actual == expected, "{name} to {h} x {w} differs");
            if area == [0.0, 0.0, source.width as f32, source.height as f32] {
                assert!(resize(&source, h, w, filter) == expected, "{name}");
            }
            cases += 1;
        }
        assert!(cases >= 40, "only {cases} cases");
    }

    /// The source of the CLIP golden values, the same formula as in the script.
    fn drawn(width: usize, height: usize) -> Rgb {
        let mut pixels = Vec::new();
        for y in 0..height {
            for x in 0..width {
                pixels.push(((x * 7 + y * 3) % 256) as u8);
                pixels.push((((x * y) >> 3) % 256) as u8);
                pixels.push((((x ^ y) * 5) % 256) as u8);
            }
        }
        Rgb::new(width, height, pixels)
    }

    #[test]
    fn clip_preprocessing_equals_torchvision() {
        let tensors = SafeTensors::deserialize(GOLDEN_CLIP).unwrap();
        // CLIP's: the short side to 224, then the middle.
        let resized = resize(&drawn(290, 437), 337, 224, Filter::Bicubic);
        let image = image::crop(&resized, [0, 56, 224, 224]);
        assert_eq!((image.height, image.width), (224, 224));
        let every_fourth = rgb(&tensors, "rows");
        for (i, row) in every_fourth.pixels.chunks_exact(224 * 3).enumerate() {
            assert!(
                row == &image.pixels[4 * i * 224 * 3..][..224 * 3],
                "row {i}"
            );
        }
        // [3, 224 / 32, 224]
        let expected = tensors.tensor("normalized").unwrap();
        let expected = expected.data().as_chunks::<4>().0;
        let actual = image::normalize(&image, CLIP_MEAN, CLIP_STD);
        for channel in 0..3 {
            for row in 0..7 {
                for x in 0..224 {
                    let e = f32::from_le_bytes(expected[(channel * 7 + row) * 224 + x]);
                    let a = actual[(channel * 224 + 32 * row) * 224 + x];
                    assert!((a - e).abs() < 1e-6, "{a} {e}");
                }
            }
        }
    }

    #[test]
    fn one_pixel_grows_to_a_flat_image() {
        let image = Rgb::new(1, 1, vec![10, 200, 30]);
        for filter in [Filter::Nearest, Filter::Bilinear, Filter::Bicubic] {
            let large = resize(&image, 5, 3, filter);
            assert!(large.pixels.chunks(3).all(|p| p == [10, 200, 30]));
        }
    }

    #[test]
    #[should_panic(expected = "not inside an image of 4 x 3")]
    fn a_crop_outside_the_image_is_refused() {
        resize_crop(&drawn(4, 3), [2, 0, 3, 3], 2, 2, Filter::Bilinear);
    }

    fn images() -> impl Strategy<Value = Rgb> {
        (1_usize..40, 1_usize..40).prop_flat_map(|(w, h)| {
            proptest::collection::vec(any::<u8>(), 3 * w * h).prop_map(move |p| Rgb::new(w, h, p))
        })
    }

    fn filters() -> impl Strategy<Value = Filter> {
        prop_oneof![
            Just(Filter::Nearest),
            Just(Filter::Bilinear),
            Just(Filter::Bicubic)
        ]
    }

    proptest! {
        #[test]
        fn the_same_size_is_the_same_image(image in images(), filter in filters()) {
            let same = resize(&image, image.height, image.width, filter);
            prop_assert_eq!(same, image);
        }

        #[test]
        fn a_crop_equals_cropping_first(
            image in images(), filter in filters(),
            h in 1_usize..30, w in 1_usize..30, part in [0.0_f64..1.0, 0.0..1.0, 0.0..1.0, 0.0..1.0],
        ) {
            let x = (part[0] * image.width as f64) as usize;
            let y = (part[1] * image.height as f64) as usize;
            let cw = 1 + (part[2] * (image.width - x) as f64) as usize;
            let ch = 1 + (part[3] * (image.height - y) as f64) as usize;
            let (cw, ch) = (cw.min(image.width - x), ch.min(image.height - y));
            let direct = resize_crop(&image, [x, y, cw, ch], h, w, filter);
            let cropped = image::crop(&image, [x, y, cw, ch]);
            prop_assert_eq!(direct, resize(&cropped, h, w, filter));
        }

        #[test]
        fn resizing_a_flipped_image_flips_the_result_to_one_level(
            image in images(), h in 1_usize..30, w in 1_usize..30, bicubic: bool,
        ) {
            // Weights are rounded and summed in another order, so the last level may differ.
            let filter = if bicubic { Filter::Bicubic } else { Filter::Bilinear };
            let a = image::flip(&resize(&image, h, w, filter));
            let b = resize(&image::flip(&image), h, w, filter);
            for (a, b) in a.pixels.iter().zip(&b.pixels) {
                prop_assert!(a.abs_diff(*b) <= 1, "{} {}", a, b);
            }
        }

        #[test]
        fn a_flat_image_stays_flat(
            level: u8, sw in 1_usize..50, sh in 1_usize..50, w in 1_usize..50, h in 1_usize..50,
            filter in filters(),
        ) {
            let image = Rgb::new(sw, sh, vec![level; 3 * sw * sh]);
            prop_assert!(resize(&image, h, w, filter).pixels.iter().all(|p| *p == level));
        }
    }
}
