//! The optimizer's operations, and casts, on several parameters in one launch.

use burn::{
    backend::{
        Backend, Dispatch, ExtensionType, TensorMetadata, backend_extension,
        cubecl::dtype_to_storage_type, fusion::custom::TensorSpec, tensor::FloatTensor,
    },
    tensor::{DType, Shape, Tensor},
};
use burn_cubecl::{CubeBackend, kernel::into_contiguous, tensor::CubeTensor};
use cubecl::prelude::{BufferArg, CubeCount, CubeDim};

use super::{
    empty, limits,
    parameter_kernels::{self, GROUP, UNITS},
};

pub use parameter_kernels::{AdamScalars, PARTS};

/// Tensors that [`adam_steps`] binds for each parameter, the most of the operations.
const BINDINGS: usize = 7;

/// Whether kernels compute these parameters, or gradients or averages of such, in this thread: f32 on one
/// device that has the kernels.
pub fn supports_parameters<'a>(tensors: impl Iterator<Item = &'a Tensor<1>> + Clone) -> bool {
    supports(tensors, DType::F32)
}

/// Whether [`casts`] takes these tensors: of one number format, as above otherwise.
pub fn supports_casts(tensors: &[Tensor<1>]) -> bool {
    { tensors.first() }.is_some_and(|first| supports(tensors.iter(), first.dtype()))
}

fn supports<'a>(mut tensors: impl Iterator<Item = &'a Tensor<1>> + Clone, format: DType) -> bool {
    let Some(device) = tensors.clone().next().map(Tensor::device) else {
        return false;
    };
    let alike = |tensor: &Tensor<1>| tensor.dtype() == format && tensor.device() == device;
    let most = tensors.clone().map(size).max().unwrap_or(0);
    limits(&device, most).is_some_and(|limits| {
        GROUP * BINDINGS < limits.max_bindings as usize
            && UNITS <= limits.max_units_per_cube as usize
    }) && tensors.all(alike)
}

/// Σ g² of each gradient, in [`PARTS`] sums one after the other, and then those of tensors that fill the last
/// launch.
///
/// # Shapes
/// - gradients: any number of tensors of any size
pub fn square_sums(gradients: Vec<Tensor<1>>) -> Vec<Tensor<1>> {
    in_groups(gradients, size)
        .map(|(some, _)| Tensor::from_dispatch(Dispatch::square_sums(Group::of(some))))
        .collect()
}

/// Value, first and second moment of a parameter.
pub type AdamState = [Tensor<1>; 3];

/// What a step of Adam or AdamW takes of a parameter.
#[derive(Debug, Clone)]
pub struct AdamUpdate {
    /// Before the step.
    pub state: AdamState,
    /// Of the value.
    pub gradient: Tensor<1>,
    /// The step's numbers.
    pub scalars: AdamScalars,
}

/// Values and moments after a step of Adam or AdamW.
pub fn adam_steps(updates: Vec<AdamUpdate>) -> Vec<AdamState> {
    let mut after = Vec::with_capacity(updates.len());
    for (some, count) in in_groups(updates, |update| size(&update.gradient)) {
        let scalars = some.iter().map(|update| update.scalars).collect();
        let [mut values, mut firsts, mut seconds, mut gradients] = [(); 4].map(|()| Vec::new());
        for update in some {
            let [value, first, second] = update.state;
            values.push(value);
            firsts.push(first);
            seconds.push(second);
            gradients.push(update.gradient);
        }
        let [values, firsts, seconds] = [values, firsts, seconds].map(Group::of);
        let before = AdamGroup {
            values,
            firsts,
            seconds,
        };
        let new = Dispatch::adam_steps(before, Group::of(gradients), scalars);
        let [values, firsts, seconds] =
            [new.values, new.firsts, new.seconds].map(|group| group.tensors(count));
        let states = values.into_iter().zip(firsts).zip(seconds);
        after.extend(states.map(|((value, first), second)| [value, first, second]));
    }
    after
}

/// a·first + b·second of each pair.
pub fn weighted_sums(pairs: Vec<[Tensor<1>; 2]>, weights: [f64; 2]) -> Vec<Tensor<1>> {
    in_groups(pairs, |[first, _]| size(first))
        .flat_map(|(some, count)| {
            let (firsts, seconds) = some.into_iter().map(<[_; 2]>::into).unzip();
            Dispatch::weighted_sums(Group::of(firsts), Group::of(seconds), weights).tensors(count)
        })
        .collect()
}

/// The values of each tensor in another number format.
pub fn casts(tensors: Vec<Tensor<1>>, format: DType) -> Vec<Tensor<1>> {
    in_groups(tensors, size)
        .flat_map(|(some, count)| Dispatch::casts(Group::of(some), format).tensors(count))
        .collect()
}

fn size(tensor: &Tensor<1>) -> usize {
    tensor.dims()[0]
}

/// [`GROUP`] items after another, and how many of them are items: copies of the smallest one, which costs
/// least, fill the last group. A group is given away, so that what it alone holds is free after its launch.
fn in_groups<T: Clone>(
    items: Vec<T>,
    size: impl Fn(&T) -> usize,
) -> impl Iterator<Item = (Vec<T>, usize)> {
    let smallest = items.iter().min_by_key(|item| size(item)).cloned();
    let mut items = items.into_iter();
    std::iter::from_fn(move || {
        let mut some: Vec<T> = items.by_ref().take(GROUP).collect();
        let count = some.len();
        some.resize(GROUP, smallest.clone()?);
        (count > 0).then_some((some, count))
    })
}

/// The tensors of a launch, [`GROUP`] of them.
#[derive(Debug, Clone, ExtensionType)]
#[extension_type(fusion)]
pub struct Group<B: Backend> {
    a: FloatTensor<B>,
    b: FloatTensor<B>,
    c: FloatTensor<B>,
    d: FloatTensor<B>,
    e: FloatTensor<B>,
    f: FloatTensor<B>,
}

impl<B: Backend> Group<B> {
    fn new([a, b, c, d, e, f]: [FloatTensor<B>; GROUP]) -> Self {
        Self { a, b, c, d, e, f }
    }

    fn into_array(self) -> [FloatTensor<B>; GROUP] {
        let Self { a, b, c, d, e, f } = self;
        [a, b, c, d, e, f]
    }
}

impl Group<Dispatch> {
    /// # Panics
    /// Of another number of tensors than [`GROUP`].
    fn of(tensors: Vec<Tensor<1>>) -> Self {
        match <[Tensor<1>; GROUP]>::try_from(tensors) {
            Ok(tensors) => Self::new(tensors.map(Tensor::into_dispatch)),
            Err(tensors) => panic!("{} tensors for a launch of {GROUP}", tensors.len()),
        }
    }

    /// The first `count` tensors.
    fn tensors(self, count: usize) -> Vec<Tensor<1>> {
        { self.into_array().into_iter() }
            .take(count)
            .map(Tensor::from_dispatch)
            .collect()
    }
}

/// Parameters and their moments.
#[derive(Debug, Clone, ExtensionType)]
#[extension_type(fusion)]
pub struct AdamGroup<B: Backend> {
    #[extension_type]
    values: Group<B>,
    #[extension_type]
    firsts: Group<B>,
    #[extension_type]
    seconds: Group<B>,
}

/// The operations on a backend. See the functions of these names.
#[backend_extension(Cube, Fusion)]
pub trait ParameterKernels: Backend {
    /// [GROUP · PARTS].
    #[fusion(meta = |_gradients| TensorSpec::new(Shape::new([GROUP * PARTS]), DType::F32))]
    fn square_sums(#[extension_type] gradients: Group<Self>) -> FloatTensor<Self>;

    /// As `before`; one of `scalars` for each parameter.
    #[fusion(meta = |before, _gradients, _scalars| before.clone())]
    fn adam_steps(
        #[extension_type] before: AdamGroup<Self>,
        #[extension_type] gradients: Group<Self>,
        scalars: Vec<AdamScalars>,
    ) -> AdamGroup<Self>;

    /// As `firsts`.
    #[fusion(meta = |firsts, _seconds, _weights| firsts.clone())]
    fn weighted_sums(
        #[extension_type] firsts: Group<Self>,
        #[extension_type] seconds: Group<Self>,
        weights: [f64; 2],
    ) -> Group<Self>;

    /// As `tensors`, in `format`.
    #[fusion(meta = |tensors, format| {
        let cast = |spec: &TensorSpec| TensorSpec::new(spec.shape.clone(), *format);
        GroupMetadata {
            a: cast(&tensors.a),
            b: cast(&tensors.b),
            c: cast(&tensors.c),
            d: cast(&tensors.d),
            e: cast(&tensors.e),
            f: cast(&tensors.f),
        }
    })]
    fn casts(#[extension_type] tensors: Group<Self>, format: DType) -> Group<Self>;
}

impl ParameterKernels for CubeBackend {
    fn square_sums(gradients: Group<Self>) -> CubeTensor {
        let gradients = Launch::new(gradients);
        let sums = empty(
            &gradients.tensors[0],
            Shape::new([GROUP * PARTS]),
            DType::F32,
        );
        parameter_kernels::square_sums::launch(
            &sums.client,
            CubeCount::Static(PARTS as u32, GROUP as u32, 1),
            CubeDim::new_1d(UNITS as u32),
            gradients.arguments(),
            gradients.sizes(),
            sums.clone().into_tensor_arg(),
        );
        sums
    }

    fn adam_steps(
        before: AdamGroup<Self>,
        gradients: Group<Self>,
        scalars: Vec<AdamScalars>,
    ) -> AdamGroup<Self> {
        let [values, firsts, seconds] =
            [before.values, before.firsts, before.seconds].map(Launch::new);
        let gradients = Launch::new(gradients);
        let new = [&values, &firsts, &seconds].map(|before| before.like(DType::F32));
        parameter_kernels::adam_step::launch(
            &values.tensors[0].client,
            values.cubes(),
            CubeDim::new_1d(UNITS as u32),
            values.arguments(),
            gradients.arguments(),
            firsts.arguments(),
            seconds.arguments(),
            new[0].arguments(),
            new[1].arguments(),
            new[2].arguments(),
            values.sizes(),
            scalars.into_iter().map(AdamScalars::launch).collect(),
        );
        let [values, firsts, seconds] = new.map(|new| Group::new(new.tensors));
        AdamGroup {
            values,
            firsts,
            seconds,
        }
    }

    fn weighted_sums(firsts: Group<Self>, seconds: Group<Self>, weights: [f64; 2]) -> Group<Self> {
        let [firsts, seconds] = [firsts, seconds].map(Launch::new);
        let sums = firsts.like(DType::F32);
        parameter_kernels::weighted_sums::launch(
            &firsts.tensors[0].client,
            firsts.cubes(),
            CubeDim::new_1d(UNITS as u32),
            firsts.arguments(),
            seconds.arguments(),
            sums.arguments(),
            firsts.sizes(),
            weights[0] as f32,
            weights[1] as f32,
        );
        Group::new(sums.tensors)
    }

    fn casts(tensors: Group<Self>, format: DType) -> Group<Self> {
        let inputs = Launch::new(tensors);
        let outputs = inputs.like(format);
        let first = &inputs.tensors[0];
        parameter_kernels::casts::launch(
            &first.client,
            inputs.cubes(),
            CubeDim::new_1d(UNITS as u32),
            inputs.arguments(),
            outputs.arguments(),
            inputs.sizes(),
            [first.dtype, format].map(dtype_to_storage_type),
        );
        Group::new(outputs.tensors)
    }
}

/// The tensors of a launch, contiguous.
struct Launch {
    tensors: [CubeTensor; GROUP],
}

impl Launch {
    fn new(group: Group<CubeBackend>) -> Self {
        Self {
            tensors: group.into_array().map(into_contiguous),
        }
    }

    /// Uninitialized tensors of the same sizes.
    fn like(&self, format: DType) -> Self {
        Self {
            tensors: { self.tensors.each_ref() }
                .map(|tensor| empty(tensor, tensor.shape(), format)),
        }
    }

    fn arguments<T: FromIterator<BufferArg>>(&self) -> T {
        { self.tensors.iter() }
            .map(|tensor| tensor.clone().into_buffer_arg())
            .collect()
    }

    fn sizes<T: FromIterator<u32>>(&self) -> T {
        // Larger ones are not supported.
        { self.tensors.iter() }
            .map(|tensor| tensor.shape().num_elements() as u32)
            .collect()
    }

    /// Four values of the largest tensor for each unit, as far as cubes go.
    fn cubes(&self) -> CubeCount {
        let sizes = { self.tensors.iter() }.map(|tensor| tensor.shape().num_elements());
        let cubes = sizes.max().unwrap_or(0).div_ceil(4 * UNITS);
        CubeCount::Static(cubes.clamp(1, 1 << 12) as u32, GROUP as u32, 1)
    }
}
