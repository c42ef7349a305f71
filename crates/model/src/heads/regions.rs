//! Regions of maps, sampled by RoIAlign (He et al., "Mask R-CNN", ICCV 2017).

use burn::tensor::{Tensor, TensorData};

use crate::kernels::{
    self, can_fuse,
    regions::{Tap, taps},
};

pub use crate::kernels::regions::Region;

/// RoIAlign: samples each region of a map on a grid of size x size bins. No gradient goes to the
/// corners.
///
/// # Shapes
/// - map: [batch, channels, height, width]
/// - output: [regions, channels, size, size]
///
/// # Panics
/// Without regions, or when one is of an image that is not there.
pub fn cut(map: Tensor<4>, regions: &[Region], size: usize) -> Tensor<4> {
    let [batch, channels, height, width] = map.dims();
    assert!(!regions.is_empty(), "no regions to cut out");
    let outside = regions.iter().find(|region| region.image >= batch);
    assert!(outside.is_none(), "{outside:?} of {batch} images");
    if can_fuse(&map) {
        return kernels::regions::cut(map, regions, size);
    }
    // Bilinear samples on a grid are one matrix product along each axis.
    let device = map.device();
    let matrix = |count: usize, length: usize, places: &mut dyn Iterator<Item = Vec<[Tap; 4]>>| {
        let mut values = vec![0.0; count * size * length];
        for (row, taps) in places.flatten().enumerate() {
            taps.iter()
                .for_each(|tap| values[row * length + tap.at] += tap.weight);
        }
        values
    };
    let mut parts = Vec::new();
    let mut order = Vec::new();
    for image in 0..batch {
        let own: Vec<usize> = (0..regions.len())
            .filter(|r| regions[*r].image == image)
            .collect();
        if own.is_empty() {
            continue;
        }
        let corners = |axis: usize| {
            own.iter()
                .map(move |r| (regions[*r].corners[axis], regions[*r].corners[axis + 2]))
        };
        let rows = matrix(
            own.len(),
            height,
            &mut corners(1).map(|(a, b)| taps(a, b, height, size)),
        );
        let columns = matrix(
            own.len(),
            width,
            &mut corners(0).map(|(a, b)| taps(a, b, width, size)),
        );
        let rows =
            Tensor::<2>::from_data(TensorData::new(rows, [own.len() * size, height]), &device);
        let columns =
            Tensor::<3>::from_data(TensorData::new(columns, [own.len(), size, width]), &device);
        let plane = map
            .clone()
            .narrow(0, image, 1)
            .permute([2, 0, 1, 3])
            .reshape([height, channels * width]);
        let across = rows
            .matmul(plane)
            .reshape([own.len(), size * channels, width]);
        let bins = across.matmul(columns.swap_dims(1, 2));
        parts.push(
            bins.reshape([own.len(), size, channels, size])
                .permute([0, 2, 1, 3]),
        );
        order.extend(own);
    }
    // Back to the order of the regions.
    let mut place = vec![0_i32; order.len()];
    order
        .iter()
        .enumerate()
        .for_each(|(at, region)| place[*region] = at as i32);
    let place = Tensor::from_data(TensorData::from(place.as_slice()), &device);
    Tensor::cat(parts, 0).select(0, place)
}
