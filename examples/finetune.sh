#!/bin/sh
# Fine-tunes the shipped model on a folder of images with masks, then segments a clip with the result:
#   examples/finetune.sh OUT [FOLDER]     FOLDER: images/ and masks/; synthetic images by default
# STEPS (default 200) is the number of training steps.
set -eu
out="$1"
data="${2:-}"
mkdir -p "$out"
if [ -z "$data" ]; then
    data="$out/data/TrainDataset"
    [ -d "$data" ] || autosam-video synth --out "$out/data" --sequences 2 --frames 40 --size 256x192 --clip "$out/clip.webm"
fi
autosam-video data check "$data"
autosam-video train --data "$data" --out "$out/run" --set steps="${STEPS:-200}" --set warmup=5
autosam-video run --input "$data" --model "$out/run/model.safetensors"
