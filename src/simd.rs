//! Loops compiled for the vector instructions of the machine that they run on.

/// Runs `f` compiled for the widest vector instructions that this machine has.
#[inline(always)]
pub(crate) fn simd<R>(f: impl FnOnce() -> R) -> R {
    struct Op<F>(F);
    impl<R, F: FnOnce() -> R> pulp::WithSimd for Op<F> {
        type Output = R;
        #[inline(always)]
        fn with_simd<S: pulp::Simd>(self, simd: S) -> R {
            simd.vectorize(Inner(self.0))
        }
    }
    struct Inner<F>(F);
    impl<R, F: FnOnce() -> R> pulp::NullaryFnOnce for Inner<F> {
        type Output = R;
        #[inline(always)]
        fn call(self) -> R {
            (self.0)()
        }
    }
    pulp::Arch::new().dispatch(Op(f))
}
