//! Functions compiled for the widest SIMD instructions of the processor they run on.

/// Defines functions that are compiled once for each SIMD instruction set; the widest of the
/// processor is chosen at run time. All functions that they call must be `#[inline(always)]`. (A
/// closure passed to `pulp` is not always inlined, and then compiled without SIMD.)
macro_rules! vectorized {
    ($($(#[$doc:meta])* $visible:vis fn $name:ident<'a>($($argument:ident: $type:ty),* $(,)?) $(-> $output:ty)? $body:block)*) => {$(
        $(#[$doc])*
        $visible fn $name<'a>($($argument: $type),*) $(-> $output)? {
            struct Work<'a> {
                $($argument: $type,)*
                lifetime: std::marker::PhantomData<&'a ()>,
            }
            impl pulp::WithSimd for Work<'_> {
                type Output = $crate::vectors::output!($($output)?);

                #[inline(always)]
                fn with_simd<S: pulp::Simd>(self, _: S) -> Self::Output {
                    let Self { $($argument,)* lifetime: _ } = self;
                    $body
                }
            }
            pulp::Arch::new().dispatch(Work { $($argument,)* lifetime: std::marker::PhantomData })
        }
    )*};
}
pub(crate) use vectorized;

/// The type after the arrow, or that of nothing.
macro_rules! output {
    () => {
        ()
    };
    ($output:ty) => {
        $output
    };
}
pub(crate) use output;
