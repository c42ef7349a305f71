//! Windows of attention, and the order of a batch's tokens window by window.

use std::ops::Range;

use super::mlp::RUN;

/// The windows of an image: which tokens attend to which.
#[derive(Debug, Clone)]
pub struct WindowGrid {
    /// Tokens of an image.
    pub tokens: usize,
    /// Positions of a window.
    pub area: usize,
    /// The windows; every token is in one.
    pub windows: Vec<Window>,
    /// For each pair of positions the row of the bias table; empty without a table.
    pub bias_index: Vec<u32>,
    /// Whether a position attends to itself and those before it alone.
    pub causal: bool,
    /// The tokens of an image, window by window.
    order: Vec<u32>,
}

/// One window.
#[derive(Debug, Clone)]
pub struct Window {
    /// The token at each position; none for padding.
    pub tokens: Vec<Option<u32>>,
    /// Positions of different regions get `penalty` on their score; empty where all are of one.
    pub regions: Vec<u8>,
    /// See `regions`.
    pub penalty: f32,
}

impl Window {
    /// Positions that are not padding.
    pub fn count(&self) -> usize {
        self.tokens.iter().flatten().count()
    }
}

impl WindowGrid {
    /// windows: of an image of that many tokens, each with `area` positions; `bias_index` as the field.
    ///
    /// # Panics
    /// When a token is not in exactly one window.
    pub fn new(
        [tokens, area]: [usize; 2],
        windows: Vec<Window>,
        bias_index: Vec<u32>,
        causal: bool,
    ) -> Self {
        let of_windows = windows.iter().flat_map(|window| &window.tokens);
        let order: Vec<u32> = of_windows.flatten().copied().collect();
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert!(
            sorted.into_iter().eq(0..tokens as u32),
            "windows of {tokens} tokens that do not hold each of them once"
        );
        Self {
            tokens,
            area,
            windows,
            bias_index,
            causal,
            order,
        }
    }

    /// All tokens in one window.
    pub fn whole(tokens: usize, causal: bool) -> Self {
        let window = Window {
            tokens: (0..tokens as u32).map(Some).collect(),
            regions: Vec::new(),
            penalty: 0.0,
        };
        Self::new([tokens; 2], vec![window], Vec::new(), causal)
    }

    /// Consecutive windows, numbered through the images of a batch, with their rows, counted from the
    /// first one's; without windows that have none.
    pub fn windows_with_rows(
        &self,
        numbers: Range<usize>,
    ) -> impl Iterator<Item = (&Window, Range<usize>)> {
        let windows = numbers.map(|number| &self.windows[number % self.windows.len()]);
        let mut first = 0;
        windows
            .map(move |window| {
                let rows = first..first + window.count();
                first = rows.end;
                (window, rows)
            })
            .filter(|(_, rows)| !rows.is_empty())
    }

    /// A row of scores, rounded up to whole vectors.
    pub fn stride(&self) -> usize {
        self.area.next_multiple_of(16)
    }
}

/// Which token of a batch each row in the windows' order is, and the reverse.
pub struct RowOrder {
    /// The token of each row.
    pub tokens: Vec<usize>,
    /// The row of each token.
    pub rows: Vec<usize>,
}

impl RowOrder {
    pub fn new(grid: &WindowGrid, images: usize) -> Self {
        let count = images * grid.tokens;
        let (mut tokens, mut rows) = (Vec::with_capacity(count), vec![0; count]);
        for image in 0..images {
            for token in &grid.order {
                let token = image * grid.tokens + *token as usize;
                rows[token] = tokens.len();
                tokens.push(token);
            }
        }
        Self { tokens, rows }
    }
}

/// Consecutive windows of a batch that a thread takes together, and their rows.
pub struct WindowRun {
    /// Counted through all images.
    pub windows: Range<usize>,
    /// In the windows' order.
    pub rows: Range<usize>,
}

impl WindowRun {
    /// All windows of a batch, in runs of as many rows as make products efficient, or fewer where
    /// other threads would have none. A window with more rows is a run of its own.
    pub fn all(grid: &WindowGrid, images: usize) -> Vec<Self> {
        let most_rows = RUN.min((images * grid.tokens).div_ceil(rayon::current_num_threads()));
        let mut runs: Vec<Self> = Vec::new();
        let windows = (0..images).flat_map(|_| &grid.windows).enumerate();
        for (index, window) in windows {
            let count = window.count();
            match runs.last_mut() {
                Some(run) if run.rows.len() + count <= most_rows => {
                    run.windows.end += 1;
                    run.rows.end += count;
                }
                last => {
                    let start = last.map_or(0, |run| run.rows.end);
                    runs.push(Self {
                        windows: index..index + 1,
                        rows: start..start + count,
                    });
                }
            }
        }
        runs
    }

    /// The part of each run in data of `width` values a row.
    pub fn parts<'a>(runs: &[Self], mut data: &'a mut [f32], width: usize) -> Vec<&'a mut [f32]> {
        runs.iter()
            .map(|run| {
                let (part, rest) = std::mem::take(&mut data).split_at_mut(run.rows.len() * width);
                data = rest;
                part
            })
            .collect()
    }
}
