//! One axis of a map: shifted and padded.

/// What comes first where a map is both padded and shifted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PaddingOrder {
    PadThenShift,
    ShiftThenPad,
}

/// Consecutive positions of an axis, or zeros.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum AxisRun {
    Take { start: usize, length: usize },
    Zeros { length: usize },
}

impl AxisRun {
    /// Position by position.
    pub(super) fn places(&self) -> impl Iterator<Item = Option<usize>> + use<> {
        let (start, length) = match *self {
            Self::Take { start, length } => (Some(start), length),
            Self::Zeros { length } => (None, length),
        };
        (0..length).map(move |offset| start.map(|start| start + offset))
    }
}

/// One axis of a map, shifted cyclically and padded to whole windows.
#[derive(Debug, PartialEq)]
pub(super) struct AxisLayout {
    /// Size with padding.
    pub(super) padded: usize,
    /// From the map to the windows.
    pub(super) arrange: Vec<AxisRun>,
    /// From the windows back to the map.
    pub(super) restore: Vec<AxisRun>,
}

impl AxisLayout {
    pub(super) fn new(size: usize, side: usize, shift: usize, order: PaddingOrder) -> Self {
        let padded = size.next_multiple_of(side);
        // Position in the arrangement → position in the map.
        let source: Vec<Option<usize>> = match order {
            PaddingOrder::PadThenShift => (0..padded)
                .map(|position| Some((position + shift) % padded).filter(|p| *p < size))
                .collect(),
            PaddingOrder::ShiftThenPad => (0..padded)
                .map(|position| (position < size).then(|| (position + shift) % size))
                .collect(),
        };
        let mut back = vec![0; size];
        for (position, place) in source.iter().enumerate() {
            if let Some(place) = place {
                back[*place] = position;
            }
        }
        Self {
            padded,
            arrange: runs(source.into_iter()),
            restore: runs(back.into_iter().map(Some)),
        }
    }
}

/// Joins positions that follow one another.
fn runs(positions: impl Iterator<Item = Option<usize>>) -> Vec<AxisRun> {
    let mut list: Vec<AxisRun> = Vec::new();
    for position in positions {
        match (list.last_mut(), position) {
            (Some(AxisRun::Take { start, length }), Some(p)) if *start + *length == p => {
                *length += 1
            }
            (Some(AxisRun::Zeros { length }), None) => *length += 1,
            (_, Some(start)) => list.push(AxisRun::Take { start, length: 1 }),
            (_, None) => list.push(AxisRun::Zeros { length: 1 }),
        }
    }
    list
}
