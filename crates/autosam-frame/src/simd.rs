//! Runs loops compiled for the vector instructions of the current machine.

use std::sync::LazyLock;

/// Environment variable that limits the instructions used, for measurements and tests: `avx2` excludes AVX-512,
/// `avx512` excludes VNNI. The processor must support the instructions that remain.
pub const VARIABLE: &str = "AUTOSAM_INSTRUCTIONS";

/// The widest instructions that may be used if the processor supports them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Limit {
    Avx2,
    Avx512,
    None,
}

impl Limit {
    /// Whether vectors of 512 bits may be used.
    pub fn avx512(self) -> bool {
        self >= Self::Avx512
    }

    /// Whether instructions for products of bytes may be used.
    pub fn vnni(self) -> bool {
        self == Self::None
    }
}

/// The limit that [`VARIABLE`] sets, read once.
pub fn limit() -> Limit {
    static LIMIT: LazyLock<Limit> = LazyLock::new(|| match std::env::var(VARIABLE).as_deref() {
        Ok("avx2") => Limit::Avx2,
        Ok("avx512") => Limit::Avx512,
        Err(_) | Ok("") => Limit::None,
        Ok(other) => {
            tracing::warn!("{VARIABLE}={other} is ignored: expected avx2 or avx512");
            Limit::None
        }
    });
    *LIMIT
}

/// Runs `f` compiled for the widest vector instructions that this machine has.
#[inline(always)]
pub fn simd<R>(f: impl FnOnce() -> R) -> R {
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
    #[cfg(target_arch = "x86_64")]
    if let (Limit::Avx2, Some(simd)) = (limit(), pulp::x86::V3::try_new()) {
        return pulp::Simd::vectorize(simd, Inner(f));
    }
    pulp::Arch::new().dispatch(Op(f))
}
