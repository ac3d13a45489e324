//! With the feature `cuda`, compiles the GPU's kernels (`src/ops/cuda`) as candle compiles its own.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "cuda")]
    kernels();
}

#[cfg(feature = "cuda")]
fn kernels() {
    println!("cargo::rerun-if-changed=src/ops/cuda/kernels.cu");
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR").expect("cargo sets OUT_DIR"));
    let built = cudaforge::KernelBuilder::new()
        .source_files(vec!["src/ops/cuda/kernels.cu"])
        .args(["-std=c++17", "-O3"])
        .build_ptx()
        .and_then(|ptx| ptx.write(out.join("ptx.rs")));
    if let Err(e) = built {
        panic!("src/ops/cuda/kernels.cu: {e}");
    }
}
