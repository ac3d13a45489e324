#!/bin/sh
# How much faster is an epoch whose embeddings are cached? ViT-B's shapes, random weights, synthetic frames, the shipped
# model's small generator. Prints the seconds per image of the first epoch (which fills the cache) and of those after it.
#   benches/embedding_cache.sh [PICTURES]
set -eu
cd "$(dirname "$0")/.."
pictures="${1:-4}"
out="$(mktemp -d)"
trap 'rm -rf "$out"' EXIT
cargo build --release --locked --example random_sam --bin autosam-video
target/release/examples/random_sam vit_b "$out/sam.safetensors"
target/release/autosam-video synth --out "$out/data" --sequences 1 --frames "$pictures" --size 640x512 --seed 3
target/release/autosam-video train --sunseg "$out/data" --sam "$out/sam.safetensors" --out "$out/run" \
    --set batch=2 --set views=1 --set steps=$((2 * pictures)) --set validate_every=100000 --set checkpoint_every=100000
awk -v n="$pictures" -F'"seconds":' '
    { split($2, v, /[,}]/); NR <= n / 2 ? first += v[1] : later += v[1] }
    END {
        first /= n; later /= 2 * NR - n
        printf "first epoch %.2f s per image, cached %.2f s: %.1f times as fast\n", first, later, first / later
    }' "$out/run/log.jsonl"
