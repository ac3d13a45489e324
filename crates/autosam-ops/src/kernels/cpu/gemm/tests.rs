//! Compares products with the crate's own, and packs and unpacks weights.

use super::*;
use crate::runtime::capture::noise;
use proptest::prelude::*;

/// A matrix `[rows, cols]` stored by row with `gap` floats between rows, or by column.
fn strided(data: &[f32], rows: usize, cols: usize, transposed: bool, gap: usize) -> MatRef {
    assert!(data.len() >= (rows + gap) * (cols + gap));
    let data = data.as_ptr();
    match transposed {
        false => MatRef { data, row_stride: (cols + gap) as isize, col_stride: 1 },
        true => MatRef { data, row_stride: 1, col_stride: (rows + gap) as isize },
    }
}

/// The crate's own product.
#[allow(clippy::too_many_arguments)] // the shape of every BLAS
fn theirs(
    m: usize,
    n: usize,
    k: usize,
    dst: &mut [f32],
    rows: usize,
    add: bool,
    scale: f32,
    a: MatRef,
    b: MatRef,
) {
    let (dst, rows, old) = (dst.as_mut_ptr(), rows as isize, f32::from(u8::from(add)));
    let sequential = ::gemm::Parallelism::None;
    // SAFETY: the callers' matrices are as large as they say.
    unsafe {
        ::gemm::gemm(
            m,
            n,
            k,
            dst,
            1,
            rows,
            add,
            a.data,
            a.col_stride,
            a.row_stride,
            b.data,
            b.col_stride,
            b.row_stride,
            old,
            scale,
            false,
            false,
            false,
            sequential,
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn products_equal_the_gemm_crate_s_bit_for_bit(
        (m, n, k) in prop_oneof![(1..40usize, 1..200usize, 1..70usize), (1..300usize, 1..900usize, 500..1100usize)],
        turned_a: bool,
        turned_b: bool,
        gap in 0..3usize,
        add: bool,
    ) {
        let (a, b) = (noise((m + gap) * (k + gap), 1), noise((k + gap) * (n + gap), 2));
        let (a, b) = (strided(&a, m, k, turned_a, gap), strided(&b, k, n, turned_b, gap));
        let mut ours = noise(m * (n + gap), 3);
        let mut expected = ours.clone();
        theirs(m, n, k, &mut expected, n + gap, add, 0.75, a, b);
        // SAFETY: the buffers are as large as the matrices.
        unsafe { gemm(m, n, k, ours.as_mut_ptr(), (n + gap) as isize, add, 0.75, a, b) };
        prop_assert!(ours.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()));
    }

    /// Tests every kind of kernel that this machine can run, not only its preferred one.
    #[test]
    fn every_kind_of_kernel_computes_the_product(
        (m, n, k) in (1..60usize, 1..200usize, 1..700usize),
        turned_a: bool,
        turned_b: bool,
        add: bool,
    ) {
        let (a, b) = (noise(m * k, 1), noise(k * n, 2));
        let (a, b) = (strided(&a, m, k, turned_a, 0), strided(&b, k, n, turned_b, 0));
        let mut expected = noise(m * n, 3);
        theirs(m, n, k, &mut expected, n, add, 0.75, a, b);
        for kernels in [avx512(), fma()].iter().flatten() {
            let mut ours = noise(m * n, 3);
            let (dst, dst_rows) = (ours.as_mut_ptr(), n as isize);
            let product =
                Product { kernels, m, n, k, dst, dst_rows, add, scale: 0.75, a, b: Right::Strided(b) };
            // SAFETY: the buffers are as large as the matrices.
            unsafe { product.run() };
            let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6 * (k as f32).sqrt() * b.abs().max(1.0);
            prop_assert!(ours.iter().zip(&expected).all(close), "{} lanes", kernels.lanes);
        }
    }

    #[test]
    fn weights_are_packed_and_unpacked((m, n, k) in (1..60usize, 1..300usize, 3..90usize)) {
        let (x, w) = (noise(m * k, 1), noise(n * k, 2));
        let a = strided(&x, m, k, false, 0);
        let b = MatRef { data: w.as_ptr(), row_stride: 1, col_stride: k as isize };
        if let Some(panels) = pack_rhs(b, k, n).unwrap() {
            let taken = unpack_rhs(&panels, n).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            prop_assert_eq!(&taken, &w);
            let mut expected = vec![0f32; m * n];
            theirs(m, n, k, &mut expected, n, false, 1.0, a, b);
            let mut ours = vec![0f32; m * n];
            let held = crate::runtime::operands::Elements::of(&panels).unwrap();
            // SAFETY: the buffers are as large as the matrices.
            unsafe { gemm_packed((m, n, k), ours.as_mut_ptr(), n as isize, a, held.as_ptr()) };
            let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * b.abs().max(1.0);
            prop_assert!(ours.iter().zip(&expected).all(close));
        }
    }
}
