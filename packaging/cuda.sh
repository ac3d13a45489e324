#!/bin/sh
# Builds program and plugin for CUDA on a machine without GPU, driver or toolkit, from NVIDIA's wheels on PyPI.
#   packaging/cuda.sh [CARGO ARGUMENTS]    default: build --release --workspace --locked --features autosam-video/cuda,gst-autosam/cuda
# KIT: folder for the toolkit (2.5 GB), default target/cuda-kit. CUDA_COMPUTE_CAP: the GPUs to build for, default 90 (H100, H200).
# Needs python3-pip, unzip, gcc. What is built goes to target-cuda's own folder, $CARGO_TARGET_DIR/cuda or target/cuda.
set -eu
cd "$(dirname "$0")/.."
kit="$(realpath -m "${KIT:-target/cuda-kit}")"
home="$kit/nvidia/cu13"

if [ ! -e "$kit/complete" ]; then
    mkdir -p "$kit/wheels"
    pip download --no-deps --dest "$kit/wheels" nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 \
        nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85 nvidia-cuda-nvrtc==13.0.88 nvidia-curand==10.4.0.35 \
        nvidia-cublas==13.0.2.14
    for wheel in "$kit"/wheels/*.whl; do unzip -qo "$wheel" -d "$kit"; done
    # What pip's installer would do, and the names that a linker looks for.
    chmod +x "$home"/bin/* "$home"/nvvm/bin/*
    ln -sfn lib "$home/lib64"
    for name in cublas:13 cublasLt:13 cudart:13 nvrtc:13 curand:10; do
        ln -sf "lib${name%:*}.so.${name#*:}" "$home/lib/lib${name%:*}.so"
    done
    touch "$kit/complete"
fi

# The driver's library is in no wheel. A stand-in to link with: what cudarc declares, each answering "no device" (100).
stubs="$home/lib/stubs"
if [ ! -e "$stubs/libcuda.so" ]; then
    mkdir -p "$stubs"
    cargo fetch --locked
    sources="$(find "${CARGO_HOME:-$HOME/.cargo}/registry/src" -path '*/cudarc-*/src/driver/sys/*.rs')"
    # shellcheck disable=SC2086 # a list of paths
    grep -ohE 'fn cu[A-Z][A-Za-z0-9_]*' $sources | sort -u | sed 's/^fn \(.*\)$/int \1(void) { return 100; }/' > "$stubs/cuda.c"
    gcc -shared -fPIC -Wl,-soname,libcuda.so.1 -o "$stubs/libcuda.so" "$stubs/cuda.c"
    ln -sf libcuda.so "$stubs/libcuda.so.1"
fi

export CUDA_HOME="$home" CUDA_PATH="$home" CUDA_ROOT="$home" CUDA_TOOLKIT_ROOT_DIR="$home"
export CUDA_COMPUTE_CAP="${CUDA_COMPUTE_CAP:-90}" PATH="$home/bin:$PATH"
# A folder of its own: other features, and a default build must not be made anew after it.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/cuda"
export RUSTFLAGS="-L native=$home/lib -L native=$stubs -C link-arg=-Wl,-rpath-link,$home/lib:$stubs ${RUSTFLAGS:-}"
if [ $# -eq 0 ]; then
    set -- build --release --workspace --locked --features autosam-video/cuda,gst-autosam/cuda
fi
exec cargo "$@"
