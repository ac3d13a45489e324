#!/bin/sh
# Measures how much faster epochs with cached embeddings are, with ViT-B's architecture, random weights, synthetic frames and the
# shipped model's small generator. Prints the seconds per image of the first epoch, which fills the cache, and of later ones.
#   benches/embedding_cache.sh [FRAMES]
set -eu
cd "$(dirname "$0")/.."
frames="${1:-4}"
out="$(mktemp -d)"
trap 'rm -rf "$out"' EXIT
cargo build --release --locked --example random_sam --bin autosam-video
target/release/examples/random_sam vit_b "$out/sam.safetensors"
target/release/autosam-video synth --out "$out/data" --sequences 1 --frames "$frames" --size 640x512 --seed 3
target/release/autosam-video train --sunseg "$out/data" --sam "$out/sam.safetensors" --out "$out/run" \
    --set batch=2 --set views=1 --set steps=$((2 * frames)) --set validate_every=100000 --set checkpoint_every=100000
awk -v n="$frames" -F'"seconds":' '
    { split($2, v, /[,}]/); NR <= n / 2 ? first += v[1] : later += v[1] }
    END {
        first /= n; later /= 2 * NR - n
        printf "first epoch %.2f s per image, cached %.2f s: %.1f times as fast\n", first, later, first / later
    }' "$out/run/log.jsonl"
