//! With the feature `cuda`, compiles the GPU kernels (`src/kernels/cuda`) in the same way as candle compiles its own.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(hopper)");
    #[cfg(feature = "cuda")]
    kernels();
}

#[cfg(feature = "cuda")]
fn kernels() {
    println!("cargo::rerun-if-changed=src/kernels/cuda");
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR").expect("cargo sets OUT_DIR"));
    let builder = cudaforge::KernelBuilder::new();
    // No other GPU, not even a later one, has Hopper's matrix instructions, so these kernels run only on it.
    if builder.get_compute_cap() == Some(90) {
        println!("cargo::rustc-cfg=hopper");
    }
    let path = |name: &str| format!("src/kernels/cuda/{name}");
    let built = builder
        .source_files(["kernels.cu", "attention.cu", "hopper.cu"].map(path).to_vec())
        .watch(["common.cuh", "attention.cuh"].map(path).to_vec())
        .args(["-std=c++17", "-O3"])
        .build_ptx()
        .and_then(|ptx| ptx.write(out.join("ptx.rs")));
    if let Err(e) = built {
        panic!("src/kernels/cuda: {e}");
    }
}
