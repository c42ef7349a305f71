//! Which windows a stage has on a map, by the rules of the published programs.

use super::{
    axis::{AxisLayout, PaddingOrder},
    config::{SwinConfig, WindowPadding},
};

/// The windows of a stage on a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StageLayout {
    /// Rows and columns of a window.
    pub(super) window: [usize; 2],
    /// How far the odd blocks shift rows and columns.
    pub(super) shift: [usize; 2],
    pub(super) order: PaddingOrder,
}

/// How to make timm's Swin so that it has the windows of a network, besides its sizes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimmWindows {
    /// `window_size`: rows and columns for each stage.
    pub window_size: Vec<[usize; 2]>,
    /// Rows and columns of the windows that timm then has, which are those of its bias tables.
    pub tables: Vec<[usize; 2]>,
    /// `always_partition`.
    pub always_partition: bool,
    /// `dynamic_img_size`, and `img_size` as timm has it by default; otherwise the model is for
    /// images of the size that was asked for.
    pub dynamic_img_size: bool,
}

/// How to call transformers' Swin so that it has the windows of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransformersWindows {
    /// `always_partition`.
    pub always_partition: bool,
}

/// Size of the images that timm builds a model for by default.
const DEFAULT_IMAGE: [usize; 2] = [224; 2];

impl SwinConfig {
    /// The windows of a stage on a map of that many rows and columns.
    pub(super) fn layout(&self, stage: usize, map: [usize; 2]) -> StageLayout {
        let window = self.sizes.stage_window(stage);
        let half = window.map(|side| side / 2);
        match self.padding {
            WindowPadding::Detection => StageLayout {
                window,
                shift: half,
                order: PaddingOrder::PadThenShift,
            },
            WindowPadding::Classification => {
                let stride = self.sizes.stage_stride(stage);
                let is_one = |axis: usize| DEFAULT_IMAGE[axis].div_ceil(stride) <= window[axis];
                StageLayout {
                    window,
                    shift: [0, 1].map(|axis| if is_one(axis) { 0 } else { half[axis] }),
                    order: PaddingOrder::ShiftThenPad,
                }
            }
            WindowPadding::Timm => StageLayout {
                window: [0, 1].map(|axis| window[axis].min(map[axis])),
                shift: [0, 1].map(|axis| {
                    let is_one = map[axis] <= window[axis];
                    if is_one { 0 } else { half[axis] }
                }),
                order: PaddingOrder::ShiftThenPad,
            },
            WindowPadding::Transformers => {
                // Its windows are squares.
                let is_one = map.iter().min() == window.iter().min();
                StageLayout {
                    window,
                    shift: if is_one { [0; 2] } else { half },
                    order: PaddingOrder::PadThenShift,
                }
            }
        }
    }

    /// Rows and columns of each stage's map for images of a height and width.
    fn maps(&self, image: [usize; 2]) -> Vec<[usize; 2]> {
        let sizes = &self.sizes;
        let mut map = image.map(|side| side.div_ceil(sizes.patch_size));
        (0..sizes.depths.len())
            .map(|stage| {
                if stage > 0 {
                    map = map.map(|side| side.div_ceil(sizes.merging(stage)));
                }
                map
            })
            .collect()
    }

    /// How to make timm's Swin so that it cuts images of a height and width as this network does;
    /// none where timm has no such windows.
    pub fn timm_windows(&self, image: [usize; 2]) -> Option<TimmWindows> {
        if !self.sizes.merging.is_empty() {
            return None;
        }
        let window_size: Vec<[usize; 2]> = (0..self.sizes.depths.len())
            .map(|stage| self.sizes.stage_window(stage))
            .collect();
        let timm = Self {
            padding: WindowPadding::Timm,
            ..self.clone()
        };
        if self.padding == WindowPadding::Classification {
            let maps = timm.maps(DEFAULT_IMAGE);
            let clipped = { maps.iter().zip(&window_size) }
                .any(|(map, window)| map[0] < window[0] || map[1] < window[1]);
            return (!clipped).then(|| TimmWindows {
                tables: window_size.clone(),
                window_size,
                always_partition: false,
                dynamic_img_size: true,
            });
        }
        // For such images timm's model cuts off what this one pads.
        if image
            .iter()
            .any(|side| !side.is_multiple_of(self.sizes.patch_size))
        {
            return None;
        }
        let maps = self.maps(image);
        let always = |stage: usize, _map| StageLayout {
            window: window_size[stage],
            shift: window_size[stage].map(|side| side / 2),
            order: PaddingOrder::ShiftThenPad,
        };
        let clipping = |stage, map| timm.layout(stage, map);
        let mut rules: [(bool, &dyn Fn(usize, [usize; 2]) -> StageLayout); 2] =
            [(false, &clipping), (true, &always)];
        if self.padding == WindowPadding::Detection {
            // Which holds at all sizes that the windows divide.
            rules.reverse();
        }
        let (always_partition, rule) = rules.into_iter().find(|(_, rule)| {
            { maps.iter().enumerate() }.all(|(stage, map)| {
                let shifted = self.sizes.depths[stage] > 1;
                alike(self.layout(stage, *map), rule(stage, *map), *map, shifted)
            })
        })?;
        Some(TimmWindows {
            tables: { maps.iter().enumerate() }
                .map(|(stage, map)| rule(stage, *map).window)
                .collect(),
            window_size: window_size.clone(),
            always_partition,
            dynamic_img_size: false,
        })
    }
}

impl SwinConfig {
    /// Whether transformers' Swin cuts images of a height and width as this network does: with its
    /// `always_partition` or without; none where it has no such windows.
    pub fn transformers_windows(&self, image: [usize; 2]) -> Option<TransformersWindows> {
        let depths = &self.sizes.depths;
        let side = self.sizes.window_size;
        let squares = (0..depths.len()).all(|stage| self.sizes.stage_window(stage) == [side; 2]);
        if !self.sizes.merging.is_empty() || !squares {
            return None;
        }
        let maps = self.maps(image);
        let rule = |padding| Self {
            padding,
            ..self.clone()
        };
        let is_rule = |other: &Self| {
            { maps.iter().enumerate() }.all(|(stage, map)| {
                let layouts = (self.layout(stage, *map), other.layout(stage, *map));
                alike(layouts.0, layouts.1, *map, depths[stage] > 1)
            })
        };
        // Without `always_partition` a map that is smaller than the window is an error there.
        let runs = maps.iter().flatten().all(|length| *length >= side);
        if runs && is_rule(&rule(WindowPadding::Transformers)) {
            return Some(TransformersWindows {
                always_partition: false,
            });
        }
        is_rule(&rule(WindowPadding::Detection)).then_some(TransformersWindows {
            always_partition: true,
        })
    }
}

/// Whether two layouts cut a map in the same way; without blocks that are shifted, that they would
/// be shifted in another way does not count.
fn alike(one: StageLayout, other: StageLayout, map: [usize; 2], shifted: bool) -> bool {
    let axes = |layout: StageLayout, shift: [usize; 2]| {
        [0, 1]
            .map(|axis| AxisLayout::new(map[axis], layout.window[axis], shift[axis], layout.order))
    };
    one.window == other.window
        && axes(one, [0; 2]) == axes(other, [0; 2])
        && (!shifted
            || (one.shift == other.shift && axes(one, one.shift) == axes(other, other.shift)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swin::SwinSizes;

    fn config(padding: WindowPadding, sizes: SwinSizes) -> SwinConfig {
        SwinConfig {
            padding,
            ..SwinConfig::new(sizes)
        }
    }

    fn layouts(padding: WindowPadding, image: [usize; 2]) -> Vec<([usize; 2], [usize; 2])> {
        let config = config(padding, SwinSizes::tiny());
        { config.maps(image).into_iter().enumerate() }
            .map(|(stage, map)| config.layout(stage, map))
            .map(|layout| (layout.window, layout.shift))
            .collect()
    }

    #[test]
    fn windows_of_people_are_those_of_each_program() {
        let (whole, shifted, still) = ([7; 2], [3; 2], [0; 2]);
        let common = [(whole, shifted); 3];
        let with = |last| [&common[..], &[last]].concat();
        let people = [256, 128];
        assert_eq!(
            layouts(WindowPadding::Detection, people),
            with((whole, shifted))
        );
        assert_eq!(
            layouts(WindowPadding::Classification, people),
            with((whole, still))
        );
        assert_eq!(layouts(WindowPadding::Timm, people), with(([7, 4], [3, 0])));
        assert_eq!(
            layouts(WindowPadding::Transformers, people),
            with((whole, shifted))
        );
        for padding in [WindowPadding::Timm, WindowPadding::Transformers] {
            assert_eq!(
                layouts(padding, [224; 2]),
                with((whole, still)),
                "{padding:?}"
            );
        }
        assert_eq!(
            layouts(WindowPadding::Timm, [384, 128])[3],
            ([7, 4], [3, 0])
        );
        assert_eq!(layouts(WindowPadding::Timm, [64, 64])[3], ([2, 2], still));
        // 7 rows, but a shorter axis of 4.
        assert_eq!(
            layouts(WindowPadding::Transformers, [224, 128])[3],
            (whole, shifted)
        );
    }

    #[test]
    fn timm_is_told_its_settings_or_cannot_have_such_windows() {
        let settings = |padding, sizes: SwinSizes, image| {
            let config = config(padding, sizes);
            let found = config.timm_windows(image)?;
            assert_eq!(found.window_size.len(), config.sizes.depths.len());
            Some((
                found.tables[3],
                found.always_partition,
                found.dynamic_img_size,
            ))
        };
        let (tiny, pico) = (SwinSizes::tiny, SwinSizes::pico);
        let people = [256, 128];
        let timm = settings(WindowPadding::Timm, tiny(), people);
        assert_eq!(timm, Some(([7, 4], false, false)));
        let classification = settings(WindowPadding::Classification, tiny(), people);
        assert_eq!(classification, Some(([7, 7], false, true)));
        assert_eq!(settings(WindowPadding::Detection, tiny(), people), None);
        assert_eq!(settings(WindowPadding::Transformers, tiny(), people), None);
        // At 224×224 the last stage is one window, which detectors shift all the same.
        let square = settings(WindowPadding::Detection, tiny(), [224; 2]);
        assert_eq!(square, Some(([7, 7], true, false)));
        let square = settings(WindowPadding::Transformers, tiny(), [224; 2]);
        assert_eq!(square, Some(([7, 7], false, false)));
        // Windows of 4 divide every map of 256×128, and not the last one of 128×64.
        let divided = settings(WindowPadding::Detection, pico(), people);
        assert_eq!(divided, Some(([4, 4], true, false)));
        assert_eq!(settings(WindowPadding::Detection, pico(), [128, 64]), None);
        let called = |padding, image| {
            let found = config(padding, SwinSizes::tiny()).transformers_windows(image);
            found.map(|windows| windows.always_partition)
        };
        assert_eq!(called(WindowPadding::Detection, people), Some(true));
        assert_eq!(called(WindowPadding::Detection, [384, 256]), Some(false));
        assert_eq!(called(WindowPadding::Transformers, people), Some(true));
        assert_eq!(called(WindowPadding::Transformers, [224; 2]), Some(false));
        assert_eq!(called(WindowPadding::Timm, people), None);
        assert_eq!(called(WindowPadding::Timm, [224; 2]), Some(false));
        assert_eq!(settings(WindowPadding::Timm, tiny(), [255, 128]), None);
        let strides = SwinSizes {
            merging: vec![2, 2, 1],
            ..pico()
        };
        assert_eq!(settings(WindowPadding::Timm, strides, people), None);
    }
}
