//! Windows of a Swin from the rows of its bias tables.
//!
//! A window of h × w positions has a table of (2h − 1)·(2w − 1) rows. timm makes the windows of a
//! stage no larger than its map, so that a Swin for images of 256×128 has windows of 7×4 in its
//! last stage, and a table of 91 rows; which factor is the height does not show.

use clasp_model::swin::SwinSizes;

/// Largest side of a window.
const LARGEST: usize = 64;

/// Windows of each stage, and what was assumed about them, in words.
#[derive(Debug, PartialEq)]
pub struct StageWindows {
    /// Rows and columns for each stage.
    pub windows: Vec<[usize; 2]>,
    /// What does not show in the file; none where everything does.
    pub assumed: Option<String>,
}

/// The windows whose tables have those numbers of rows, one a stage; `image` is the height and
/// width of the images, where they are known, and `patch` the side of a patch.
pub fn stage_windows(
    rows: &[usize],
    patch: usize,
    image: Option<[usize; 2]>,
) -> Result<StageWindows, String> {
    let mut found = StageWindows {
        windows: Vec::with_capacity(rows.len()),
        assumed: None,
    };
    let mut map = image.map(|image| image.map(|side| side.div_ceil(patch.max(1))));
    for (stage, rows) in rows.iter().copied().enumerate() {
        let candidates = factors(rows);
        if candidates.is_empty() {
            return Err(format!(
                "`layers.{stage}.blocks.0.attn.relative_position_bias_table`: expected a product of two odd numbers of \
                 positions up to {}, found {rows}",
                2 * LARGEST - 1
            ));
        }
        let square = candidates.iter().copied().find(|[h, w]| h == w);
        let whole = found.windows.first().copied().or(square);
        let clipped = map
            .zip(whole)
            .map(|(map, whole)| [0, 1].map(|axis| map[axis].min(whole[axis])));
        let window = match clipped.filter(|window| candidates.contains(window)) {
            Some(window) => window,
            None => match (square, whole) {
                (Some(window), _) => window,
                (None, whole) => {
                    let window = upright(&candidates, whole).ok_or_else(|| {
                        format!(
                            "`layers.{stage}.blocks.0.attn.relative_position_bias_table` has {rows} rows, which windows of \
                             {} have\nhint: --size HxW of the images that it was made for",
                            listed(&candidates)
                        )
                    })?;
                    found.assumed.get_or_insert_with(|| {
                        format!(
                            "windows of {}x{} (rows x columns) in stage {}, as of images that are higher than wide; a table \
                             does not show which is which: --size HxW",
                            window[0],
                            window[1],
                            stage + 1
                        )
                    });
                    window
                }
            },
        };
        found.windows.push(window);
        map = map.map(|map| map.map(|side| side.div_ceil(2)));
    }
    Ok(found)
}

/// Of windows that are no squares the one that images higher than wide have: whole along the
/// height, if there is one, else the only one.
fn upright(candidates: &[[usize; 2]], whole: Option<[usize; 2]>) -> Option<[usize; 2]> {
    let fits = |[h, w]: &[usize; 2]| h > w && whole.is_none_or(|whole| *h <= whole[0]);
    let mut fitting = candidates.iter().copied().filter(fits);
    let first = fitting.next()?;
    let rest: Vec<[usize; 2]> = fitting.collect();
    let is_whole = |window: &[usize; 2]| whole.is_some_and(|whole| window[0] == whole[0]);
    match rest.as_slice() {
        [] => Some(first),
        rest => rest
            .iter()
            .copied()
            .chain([first])
            .find(|window| is_whole(window)),
    }
}

/// Every window with a table of that many rows.
fn factors(rows: usize) -> Vec<[usize; 2]> {
    { (1..2 * LARGEST).step_by(2) }
        .filter(|height| rows.is_multiple_of(*height))
        .map(|height| [height, rows / height])
        .filter(|[_, width]| width % 2 == 1 && *width < 2 * LARGEST)
        .map(|sides| sides.map(|side| side.div_ceil(2)))
        .collect()
}

fn listed(windows: &[[usize; 2]]) -> String {
    let texts: Vec<String> = windows.iter().map(|[h, w]| format!("{h}x{w}")).collect();
    texts.join(", ")
}

/// Height and width of the images that a Swin of those windows is for, in pixels: squares whose
/// last map is one window, as ImageNet's; where windows are smaller than the first stage's, the
/// images that they were clipped to, twice as high as wide where the height does not show.
pub fn image_size(sizes: &SwinSizes) -> [usize; 2] {
    let whole = sizes.stage_window(0);
    let last = sizes.depths.len().saturating_sub(1);
    let shown = |axis: usize| {
        { 0..=last }
            .map(|stage| (sizes.stage_window(stage)[axis], sizes.stage_stride(stage)))
            .find(|(side, _)| *side < whole[axis])
            .map(|(side, stride)| side * stride)
    };
    match [shown(0), shown(1)] {
        [Some(height), Some(width)] => [height, width],
        [None, Some(width)] => [2 * width, width],
        [Some(height), None] => [height, 2 * height],
        [None, None] => whole.map(|side| side * sizes.stage_stride(last)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(rows: &[usize], image: Option<[usize; 2]>) -> Vec<[usize; 2]> {
        stage_windows(rows, 4, image).unwrap().windows
    }

    #[test]
    fn windows_follow_from_the_rows_of_tables() {
        assert_eq!(windows(&[169; 4], None), [[7, 7]; 4]);
        let people = [169, 169, 169, 91];
        assert_eq!(windows(&people, None)[3], [7, 4]);
        assert_eq!(windows(&people, Some([256, 128]))[3], [7, 4]);
        assert_eq!(windows(&people, Some([128, 256]))[3], [4, 7]);
        let found = stage_windows(&people, 4, Some([256, 128])).unwrap();
        assert_eq!(found.assumed, None);
        let found = stage_windows(&people, 4, None).unwrap();
        assert!(found.assumed.unwrap().contains("7x4"));
        // 4x2 maps: (2·4 − 1)·(2·2 − 1).
        assert_eq!(windows(&[169, 169, 91, 21], None)[3], [4, 2]);
        assert_eq!(windows(&[169, 169, 169, 121], None)[3], [6, 6]);
        // 45 rows: of 5x3, and 8x2 which the others rule out.
        assert_eq!(windows(&[81, 45], None)[1], [5, 3]);
        let message = stage_windows(&[169, 48], 4, None).unwrap_err();
        assert!(
            message.contains("two odd numbers") && message.contains("48"),
            "{message}"
        );
        // 5x3 or 8x2, neither as high as the windows before.
        let message = stage_windows(&[289, 45], 4, None).unwrap_err();
        assert!(message.contains("--size"), "{message}");
    }

    #[test]
    fn images_are_those_that_windows_were_clipped_to() {
        let image = |windows: &[[usize; 2]]| {
            image_size(&SwinSizes {
                windows: windows.to_vec(),
                ..SwinSizes::tiny()
            })
        };
        assert_eq!(image(&[]), [224, 224]);
        assert_eq!(image(&[[7, 7], [7, 7], [7, 7], [7, 4]]), [256, 128]);
        assert_eq!(image(&[[7, 7], [7, 7], [7, 7], [6, 6]]), [192, 192]);
        assert_eq!(image(&[[7, 7], [7, 7], [7, 4], [4, 2]]), [128, 64]);
        assert_eq!(image(&[[7, 7], [7, 7], [14, 14], [7, 7]]), [224, 224]);
    }
}
