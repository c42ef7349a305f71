//! The products of a layer: tokens with its weights and, in the backward pass, gradients with them
//! and with its tokens, in the precision of the thread that started the operation.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use burn::{
    backend::Flex,
    tensor::{Bytes, Tensor},
};

use super::bf16::{self, Rounded};
use super::matrix::{MatrixView, add_product, set_product};
use super::mode::Precision;

/// The weights of a layer, the right factor of many matrix products.
pub enum Weight<'a> {
    /// In f32.
    F32(MatrixView<'a>),
    /// Rounded to bf16.
    Bf16(Arc<Rounded>),
}

impl<'a> Weight<'a> {
    /// Row-major [rows, columns], in the thread's [`Precision`]; `packed`: of this `data`.
    ///
    /// # Panics
    /// When `packed` is of another matrix.
    pub fn new(data: &'a [f32], columns: usize, packed: &PackedWeight) -> Self {
        match Precision::current() {
            Precision::F32 => Self::F32(MatrixView::new(data, columns)),
            Precision::Bf16 => Self::Bf16(match &packed.0 {
                Some(rounded) => {
                    assert_eq!(rounded.shape(), [data.len() / columns, columns], "packed");
                    rounded.clone()
                }
                None => Arc::new(Rounded::new(data, columns)),
            }),
        }
    }

    /// The transpose of a row-major [rows, columns], in the thread's [`Precision`].
    pub fn transposed(data: &'a [f32], columns: usize) -> Self {
        match Precision::current() {
            Precision::F32 => Self::F32(MatrixView::new(data, columns).t()),
            Precision::Bf16 => Self::Bf16(Arc::new(Rounded::transposed(data, columns))),
        }
    }

    /// out += a · weights. a: row-major [n, rows], out: [n, columns].
    pub fn add_product(&self, out: &mut [f32], a: &[f32]) {
        match self {
            Self::F32(b) => add_product(out, b.columns(), MatrixView::new(a, b.rows()), *b, 1.0),
            Self::Bf16(b) => b.add_product(out, a),
        }
    }

    /// out = a · weights. a: row-major [n, rows], out: [n, columns].
    pub fn set_product(&self, out: &mut [f32], a: &[f32]) {
        match self {
            Self::F32(b) => set_product(out, b.columns(), MatrixView::new(a, b.rows()), *b),
            Self::Bf16(b) => {
                out.fill(0.0);
                b.add_product(out, a);
            }
        }
    }
}

/// The packed bf16 form of weights outside autodiff, kept from one product to the next. Packing took a
/// twentieth of the time of a batch of eight images in a Swin-T, and a third of that of a single image
/// (AMD EPYC, docs/LOG.md). None in f32, and none of weights in autodiff, which training changes at
/// each step.
///
/// The packed form is freed when a layer computes in bf16 after the weights are gone or changed.
#[derive(Clone)]
pub struct PackedWeight(Option<Arc<Rounded>>);

/// The packed form of a tensor's values.
struct Kept {
    /// The tensor's storage. As long as this is here the storage's address is not given to another
    /// one. `Arc::get_mut` fails, and `Arc::make_mut` moves the storage to another address before it
    /// changes values, so that changed values are never taken for these.
    storage: Weak<Bytes>,
    /// Where the values begin, and their number.
    part: (usize, usize),
    columns: usize,
    rounded: Arc<Rounded>,
}

static KEPT: Mutex<Vec<Kept>> = Mutex::new(Vec::new());

impl PackedWeight {
    /// weight: [rows, columns].
    pub fn new(weight: &Tensor<2>) -> Self {
        if Precision::current() == Precision::F32 || weight.is_autodiff() {
            return Self(None);
        }
        let columns = weight.dims()[1];
        let Ok(tensor) = weight.clone().try_into_primitive::<Flex>() else {
            return Self(None);
        };
        let Some(values) = tensor.as_slice::<f32>() else {
            return Self(None);
        };
        let storage = tensor.data_arc();
        let part = (values.as_ptr().addr(), values.len());
        let find = |kept: &[Kept]| {
            let found = kept.iter().find(|kept| {
                std::ptr::eq(kept.storage.as_ptr(), Arc::as_ptr(&storage))
                    && (kept.part, kept.columns) == (part, columns)
            });
            found.map(|kept| kept.rounded.clone())
        };
        let lock = || KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        let found = {
            let mut kept = lock();
            kept.retain(|kept| kept.storage.strong_count() > 0);
            find(&kept)
        };
        if found.is_some() {
            return Self(found);
        }
        // Packed by all threads, which may wait for one another: not under the lock.
        let rounded = Arc::new(Rounded::new(values, columns));
        let mut kept = lock();
        // Another replica may have packed them in the meantime.
        if let Some(found) = find(&kept) {
            return Self(Some(found));
        }
        kept.push(Kept {
            storage: Arc::downgrade(&storage),
            part,
            columns,
            rounded: rounded.clone(),
        });
        Self(Some(rounded))
    }
}

impl fmt::Debug for PackedWeight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "packed" } else { "none" })
    }
}

/// sums += aᵀ · b, the gradient of weights from tokens `a` and the gradient of their products.
///
/// a: row-major [n, rows], b: [n, columns], sums: [rows, columns].
pub fn add_weight_gradient(
    precision: Precision,
    sums: &mut [f32],
    [a, b]: [&[f32]; 2],
    [rows, columns]: [usize; 2],
) {
    match precision {
        Precision::F32 => {
            let (a, b) = (MatrixView::new(a, rows), MatrixView::new(b, columns));
            add_product(sums, columns, a.t(), b, 1.0);
        }
        Precision::Bf16 => bf16::add_transposed_product(sums, [a, b], [rows, columns]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};

    fn tensor(data: &[f32], device: &Device) -> Tensor<2> {
        Tensor::from_data(TensorData::new(data.to_vec(), [3, 4]), device)
    }

    fn packed(weight: &Tensor<2>) -> Option<Arc<Rounded>> {
        Precision::Bf16.within(|| PackedWeight::new(weight).0)
    }

    #[test]
    fn weights_are_packed_once_and_again_after_a_change() {
        let values: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let device = Device::flex();
        let weight = tensor(&values, &device);
        assert!(PackedWeight::new(&weight).0.is_none(), "f32");
        let trained = tensor(&values, &device.clone().autodiff()).require_grad();
        assert!(packed(&trained).is_none(), "weights in autodiff");
        let turned = packed(&weight.clone().transpose());
        assert!(turned.is_none(), "values in another order");

        let first = packed(&weight).unwrap();
        assert!(Arc::ptr_eq(&first, &packed(&weight.clone()).unwrap()));
        // The same storage, other columns or another part.
        let wide = packed(&weight.clone().reshape([2, 6])).unwrap();
        assert_eq!((wide.shape(), first.shape()), ([2, 6], [3, 4]));
        let part = packed(&weight.clone().slice([1..3])).unwrap();
        assert_eq!(part.shape(), [2, 4]);

        // Alone with its storage, which the operation may take for its result.
        let doubled = weight * 2.0;
        let kept = PackedWeight(Some(packed(&doubled).unwrap()));
        let twice: Vec<f32> = values.iter().map(|x| 2.0 * x).collect();
        let [from_kept, fresh] = [kept, PackedWeight(None)].map(|packed| {
            let mut out = vec![0.0; 4];
            Precision::Bf16.within(|| {
                Weight::new(&twice, 4, &packed).add_product(&mut out, &[1.0, 2.0, 3.0]);
            });
            out
        });
        assert_eq!(from_kept, fresh);

        // What belonged to tensors that are gone goes with the next call.
        packed(&doubled).unwrap();
        assert_eq!([&first, &wide, &part].map(Arc::strong_count), [1; 3]);
    }

    #[test]
    fn threads_that_pack_the_same_weights_share_one_form() {
        let weight = tensor(&[1.0; 12], &Device::flex());
        let barrier = std::sync::Barrier::new(4);
        let found: Vec<Arc<Rounded>> = std::thread::scope(|scope| {
            let start = || {
                barrier.wait();
                packed(&weight).unwrap()
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(start)).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| thread.join().unwrap();
            threads.into_iter().map(join).collect()
        });
        assert!(found.iter().all(|other| Arc::ptr_eq(&found[0], other)));
    }
}
