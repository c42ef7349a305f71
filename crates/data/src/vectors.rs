//! Functions compiled for the widest vectors of the processor they run on.

/// Defines functions that are compiled once for each kind of vectors, of which the processor's widest is taken. All that they
/// call must be `#[inline(always)]`. (A closure handed to `pulp` is not always inlined, and then compiled without vectors.)
macro_rules! vectorised {
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
pub(crate) use vectorised;

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
