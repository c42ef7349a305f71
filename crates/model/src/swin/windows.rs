//! Windows of a map: how it is shifted, padded and cut.

use std::collections::VecDeque;
#[cfg(feature = "gpu")]
use std::iter;
use std::sync::{Arc, Mutex, PoisonError};

use burn::{
    backend::DispatchDevice,
    tensor::{Device, Int, Tensor, TensorData},
};

use super::{
    axis::{AxisLayout, AxisRun},
    config::SwinConfig,
    layout::StageLayout,
};
#[cfg(feature = "gpu")]
use crate::gpu;
use crate::{
    kernels::{self, windows::WindowGrid},
    layers::BiasResampling,
};

/// Added to the scores of positions that only a cyclic shift made neighbors.
const FORBIDDEN: f32 = -100.0;

/// The windows of a stage's even blocks and of its odd blocks, which are shifted.
pub(super) fn windows(
    config: &SwinConfig,
    stage: usize,
    height: usize,
    width: usize,
    x: &Tensor<4>,
) -> [Windows; 2] {
    let size = [height, width];
    let layout = config.layout(stage, size);
    let still = StageLayout {
        shift: [0; 2],
        ..layout
    };
    [still, layout].map(|layout| {
        let key = WindowKey {
            size,
            layout,
            table: config.sizes.stage_window(stage),
            form: Form::of(x, layout.window, config.sizes.num_heads[stage]),
            device: x.device().inner(),
        };
        cached(key, WindowKey::windows)
    })
}

/// What determines the windows of a block.
#[derive(Debug, Clone, PartialEq)]
struct WindowKey {
    /// Rows and columns of the map.
    size: [usize; 2],
    layout: StageLayout,
    /// Rows and columns of the windows that the bias table is of.
    table: [usize; 2],
    form: Form,
    /// Where it computes.
    device: Device,
}

/// What computes the attention.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    /// The fused operation of the CPU.
    Fused,
    /// The kernel for GPUs.
    #[cfg(feature = "gpu")]
    Kernel,
    /// Burn's graph.
    Graph,
}

impl Form {
    /// For x [batch, height, width, channels], which is where it will be computed.
    #[cfg_attr(not(feature = "gpu"), allow(unused_variables))]
    fn of(x: &Tensor<4>, window: [usize; 2], heads: usize) -> Self {
        if kernels::can_fuse(x) {
            return Self::Fused;
        }
        #[cfg(feature = "gpu")]
        if gpu::supports_window_attention(
            &x.device(),
            window,
            x.dims()[3] / heads,
            3 * x.shape().num_elements(),
        ) {
            return Self::Kernel;
        }
        Self::Graph
    }
}

impl WindowKey {
    fn windows(&self) -> Windows {
        let cut = WindowPartition::new(self.size, self.layout);
        let partition = match self.form {
            Form::Fused => Partition::Fused(Arc::new(cut.grid())),
            #[cfg(feature = "gpu")]
            Form::Kernel => Partition::Kernel(Arc::new(cut.places(&self.device))),
            Form::Graph => Partition::Graph(Arc::new(cut.tensors(&self.device))),
        };
        let (stored, window) = (self.table, self.layout.window);
        Windows {
            partition,
            resampling: (stored != window)
                .then(|| BiasResampling::new(stored, window, &self.device)),
        }
    }
}

/// The windows of `key`, cached: making them costs more on the host than a small block, and sending
/// them to a device waits for it.
fn cached(key: WindowKey, make: impl FnOnce(&WindowKey) -> Windows) -> Windows {
    /// As many as the stages of two backbones need for three sizes of images.
    const KEPT: usize = 48;
    /// Positions of a map whose windows are kept: masks of larger ones take too much of a device's
    /// memory.
    const POSITIONS: usize = 1 << 14;
    static RECENT: Mutex<VecDeque<(WindowKey, Windows)>> = Mutex::new(VecDeque::new());
    let records = matches!(key.device.as_dispatch(), DispatchDevice::Capture(_));
    if records || key.size.iter().product::<usize>() > POSITIONS {
        return make(&key);
    }
    // A thread that panics leaves the list consistent.
    let recent = || RECENT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, windows)) = recent().iter().find(|(known, _)| *known == key) {
        return windows.clone();
    }
    let windows = make(&key);
    let mut recent = recent();
    // Another replica may have added it in the meantime.
    if recent.iter().all(|(known, _)| *known != key) {
        if recent.len() == KEPT {
            recent.pop_front();
        }
        recent.push_back((key, windows.clone()));
    }
    windows
}

/// For each pair of positions of a window of those rows and columns, the row of the bias table:
/// [area·area].
fn relative_position_index([rows, columns]: [usize; 2]) -> Vec<u32> {
    let place = |position: usize| (position / columns, position % columns);
    let area = rows * columns;
    (0..area * area)
        .map(|pair| {
            let ((row, column), (other_row, other_column)) =
                (place(pair / area), place(pair % area));
            let down = row + rows - 1 - other_row;
            let right = column + columns - 1 - other_column;
            (down * (2 * columns - 1) + right) as u32
        })
        .collect()
}

/// The windows of a block.
#[derive(Clone)]
pub(super) struct Windows {
    /// In the form that its attention takes.
    pub(super) partition: Partition,
    /// From the stored bias table to that of these windows; none where they are the same.
    pub(super) resampling: Option<BiasResampling>,
}

/// A partition in the form that the attention takes.
#[derive(Clone)]
pub(super) enum Partition {
    /// Of the fused operation.
    Fused(Arc<WindowGrid>),
    /// Of the kernel for GPUs.
    #[cfg(feature = "gpu")]
    Kernel(Arc<gpu::WindowPlaces>),
    /// Of Burn's graph.
    Graph(Arc<WindowTensors>),
}

/// How a map is partitioned into windows: where its rows and columns go.
pub(super) struct WindowPartition {
    rows: AxisLayout,
    columns: AxisLayout,
    /// Rows and columns of a window.
    pub(super) window: [usize; 2],
    pub(super) shift: [usize; 2],
    /// Rows and columns of the map.
    pub(super) size: [usize; 2],
}

/// A partition with its tensors.
pub(super) struct WindowTensors {
    pub(super) cut: WindowPartition,
    pub(super) bias_index: Tensor<1, Int>,
    /// [windows, 1, area, area], 0 or [`FORBIDDEN`]; none without a shift.
    pub(super) mask: Option<Tensor<4>>,
}

impl WindowPartition {
    pub(super) fn new(size: [usize; 2], layout: StageLayout) -> Self {
        let StageLayout {
            window,
            shift,
            order,
        } = layout;
        let axis = |axis: usize| AxisLayout::new(size[axis], window[axis], shift[axis], order);
        Self {
            rows: axis(0),
            columns: axis(1),
            window,
            shift,
            size,
        }
    }

    fn is_shifted(&self) -> bool {
        self.shift != [0; 2]
    }

    pub(super) fn tensors(self, device: &Device) -> WindowTensors {
        let index = relative_position_index(self.window);
        let index: Vec<i64> = index.into_iter().map(i64::from).collect();
        let count = index.len();
        WindowTensors {
            bias_index: Tensor::from_data(TensorData::new(index, [count]), device),
            mask: self.is_shifted().then(|| self.mask(device)),
            cut: self,
        }
    }

    pub(super) fn grid(&self) -> WindowGrid {
        let ([height, width], [down, right]) = (self.size, self.window);
        let places = |arrangement: &AxisLayout| -> Vec<Option<usize>> {
            arrangement
                .arrange
                .iter()
                .flat_map(|run| run.places())
                .collect()
        };
        let (rows, columns) = (places(&self.rows), places(&self.columns));
        let [_, across] = self.count();
        let windows = (0..self.windows()).map(|window| {
            let tokens = (0..self.area()).map(|position| {
                let row = rows[window / across * down + position / right]?;
                let column = columns[window % across * right + position % right]?;
                Some((row * width + column) as u32)
            });
            let regions = self.regions(window);
            let alike = !self.is_shifted() || regions.iter().all(|region| *region == regions[0]);
            kernels::windows::Window {
                tokens: tokens.collect(),
                regions: if alike { Vec::new() } else { regions },
                penalty: FORBIDDEN,
            }
        });
        WindowGrid::new(
            [height * width, self.area()],
            windows.collect(),
            relative_position_index(self.window),
            false,
        )
    }

    #[cfg(feature = "gpu")]
    pub(super) fn places(&self, device: &Device) -> gpu::WindowPlaces {
        let grid = self.grid();
        let mut places = Vec::with_capacity(2 * grid.windows.len() * grid.area);
        for window in &grid.windows {
            let token = |token: &Option<u32>| token.map_or(0, |token| i64::from(token) + 1);
            places.extend(window.tokens.iter().map(token));
            let regions = window.regions.iter().map(|region| i64::from(*region));
            places.extend(regions.chain(iter::repeat(0)).take(grid.area));
        }
        let shape = [grid.windows.len(), 2, grid.area];
        gpu::WindowPlaces {
            places: Tensor::from_data(TensorData::new(places, shape), device),
            window: self.window,
            penalty: FORBIDDEN,
        }
    }

    /// Positions of a window.
    pub(super) fn area(&self) -> usize {
        self.window.iter().product()
    }

    /// Windows along the height and the width.
    pub(super) fn count(&self) -> [usize; 2] {
        [
            self.rows.padded / self.window[0],
            self.columns.padded / self.window[1],
        ]
    }

    fn windows(&self) -> usize {
        self.count().iter().product()
    }

    /// After a cyclic shift the last window holds positions from both ends of the map; those of
    /// different regions may not attend to one another.
    fn regions(&self, window: usize) -> Vec<u8> {
        let region = |axis: usize, position: usize, size: usize| {
            u8::from(position >= size - self.window[axis])
                + u8::from(position >= size - self.shift[axis])
        };
        let ([_, across], [down, right]) = (self.count(), self.window);
        (0..self.area())
            .map(|position| {
                let row = (window / across) * down + position / right;
                let column = (window % across) * right + position % right;
                3 * region(0, row, self.rows.padded) + region(1, column, self.columns.padded)
            })
            .collect()
    }

    /// The mask of the regions: [windows, 1, area, area].
    fn mask(&self, device: &Device) -> Tensor<4> {
        let area = self.area();
        let mut values = Vec::with_capacity(self.windows() * area * area);
        for window in 0..self.windows() {
            let regions = self.regions(window);
            for one in &regions {
                let forbidden = |other| if one == other { 0.0 } else { FORBIDDEN };
                values.extend(regions.iter().map(forbidden));
            }
        }
        Tensor::from_data(
            TensorData::new(values, [self.windows(), 1, area, area]),
            device,
        )
    }

    /// [batch, height, width, channels] → shifted and padded.
    pub(super) fn arrange(&self, x: Tensor<4>) -> Tensor<4> {
        take_runs(
            take_runs(x, 1, &self.rows.arrange),
            2,
            &self.columns.arrange,
        )
    }

    /// Undoes [`WindowPartition::arrange`]: values at padding positions are dropped.
    pub(super) fn restore(&self, x: Tensor<4>) -> Tensor<4> {
        take_runs(
            take_runs(x, 1, &self.rows.restore),
            2,
            &self.columns.restore,
        )
    }
}

/// Builds an axis from runs of it.
fn take_runs(x: Tensor<4>, axis: usize, runs: &[AxisRun]) -> Tensor<4> {
    let size = x.dims()[axis];
    let pieces: Vec<Tensor<4>> = runs
        .iter()
        .map(|run| match *run {
            AxisRun::Take { start: 0, length } if length == size => x.clone(),
            AxisRun::Take { start, length } => x.clone().narrow(axis, start, length),
            AxisRun::Zeros { length } => {
                let mut shape = x.dims();
                shape[axis] = length;
                Tensor::zeros(shape, &x.device())
            }
        })
        .collect();
    match <[Tensor<4>; 1]>::try_from(pieces) {
        Ok([piece]) => piece,
        Err(pieces) => Tensor::cat(pieces, axis),
    }
}
