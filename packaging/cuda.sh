#!/bin/sh
# Builds program and plugin for CUDA on a machine without GPU, driver or toolkit, from NVIDIA's wheels on PyPI.
#   packaging/cuda.sh [CARGO ARGUMENTS]    default: build --release --workspace --features autosam-video/cuda,gst-autosam/cuda
# KIT: folder for the toolkit (2.5 GB), default target/cuda-kit. CUDA_COMPUTE_CAP: the GPUs to build for, default 90 (H100, H200).
# Needs python3-pip and unzip. The output is in $CARGO_TARGET_DIR/cuda or target/cuda. The program also starts without a driver and
# then computes on the CPU. With a GPU it needs the driver and CUDA 13's libcublas, libcublasLt, libcurand and libnvrtc.
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
    # pip's installer would do the same.
    chmod +x "$home"/bin/* "$home"/nvvm/bin/*
    ln -sfn lib "$home/lib64"
    # The runtime is linked into the program.
    ln -sf libcudart_static.a "$home/lib/libcudart.a"
    touch "$kit/complete"
fi

# candle links CUDA's libraries, and a program linked to the driver's library does not start without a driver. cudarc can instead
# load the libraries at their first use. This needs a copy of candle-core with one word of its manifest changed.
cargo fetch --locked
version="$(sed -n '/^name = "candle-core"$/{n;s/^version = "\(.*\)"$/\1/p}' Cargo.lock)"
candle="$kit/candle-core-$version"
if [ ! -d "$candle" ]; then
    cp -r "$(find "${CARGO_HOME:-$HOME/.cargo}/registry/src" -maxdepth 2 -name "candle-core-$version" | head -n 1)" "$candle"
    sed -i 's/"dynamic-linking"/"dynamic-loading"/' "$candle/Cargo.toml"
fi
# Cargo records the copy's path in the lock file, which is restored afterwards.
cp Cargo.lock "$kit/Cargo.lock"
trap 'cp "$kit/Cargo.lock" Cargo.lock' EXIT

export CUDA_HOME="$home" CUDA_PATH="$home" CUDA_ROOT="$home" CUDA_TOOLKIT_ROOT_DIR="$home"
export CUDA_COMPUTE_CAP="${CUDA_COMPUTE_CAP:-90}" PATH="$home/bin:$PATH"
# A separate target folder, because the features differ: a default build afterwards must not start from the beginning.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/cuda" LIBRARY_PATH="$home/lib"
if [ $# -eq 0 ]; then
    set -- build --release --workspace --features autosam-video/cuda,gst-autosam/cuda
fi
cargo --config "patch.crates-io.candle-core.path=\"$candle\"" "$@"
