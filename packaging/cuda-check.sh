#!/bin/sh
# Type-checks the code behind the feature `cuda` on any machine, in a few minutes. A stand-in for nvcc compiles no kernel.
#   packaging/cuda-check.sh
# packaging/cuda.sh builds it.
set -eu
cd "$(dirname "$0")/.."
kit="$(mktemp -d)"
trap 'rm -rf "$kit"' EXIT
mkdir -p "$kit/bin" "$kit/include" "$kit/lib64"
cat > "$kit/bin/nvcc" <<'END'
#!/bin/sh
# Makes the output files that it is asked for, empty.
out= dir= source=
while [ $# -gt 0 ]; do
    case $1 in
        --version) echo "Cuda compilation tools, release 13.0, V13.0.88"; exit ;;
        --list-gpu-code) echo sm_90; exit ;;
        -o) out=$2; shift ;;
        --output-directory) dir=$2; shift ;;
        *.cu) source=$1 ;;
    esac
    shift
done
[ -z "$out" ] || : > "$out"
[ -z "$dir" ] || : > "$dir/$(basename "$source" .cu).ptx"
END
chmod +x "$kit/bin/nvcc"
export CUDA_HOME="$kit" CUDA_PATH="$kit" CUDA_ROOT="$kit" CUDA_TOOLKIT_ROOT_DIR="$kit" PATH="$kit/bin:$PATH"
export CUDARC_CUDA_VERSION=13000 CUDA_COMPUTE_CAP="${CUDA_COMPUTE_CAP:-90}"
# A separate target folder: a build with kernels must not take the stand-in's for its own.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/cuda-check"
cargo check --release --workspace --tests --locked --features autosam-video/cuda,gst-autosam/cuda
