#!/bin/sh
# Runs a clip through the element `autosam` in real time with the shipped model and stores the result.
#   ./demo.sh              makes a synthetic clip (no patient data needed)
#   ./demo.sh CLIP         uses your clip
# Results are in demo-out/; nothing leaves this machine.
set -eu
cd "$(dirname "$0")"
out=demo-out
program=target/release/autosam-video
export GST_PLUGIN_PATH="$PWD/target/release${GST_PLUGIN_PATH:+:$GST_PLUGIN_PATH}"
[ -x "$program" ] && [ -e target/release/libgstautosam.so ] || { echo "run ./setup.sh first" >&2; exit 1; }
mkdir -p "$out"

clip="${1:-}"
if [ -z "$clip" ]; then
    clip="$out/clip.mp4"
    if [ ! -e "$clip" ]; then
        echo "== creating a synthetic colonoscopy clip: $clip"
        "$program" synth --out "$out/synthetic" --force --sequences 1 --frames 150 --seed 8 --clip "$clip"
    fi
fi

echo "== live, at the clip's own speed: every frame passes with the most recent mask"
gst-launch-1.0 -m filesrc location="$clip" ! decodebin ! videoconvert ! clocksync ! autosam \
    ! queue ! videoconvert ! x264enc speed-preset=ultrafast tune=zerolatency pass=qual quantizer=20 \
    ! h264parse ! mp4mux ! filesink location="$out/live.mp4" >"$out/live.log" || { cat "$out/live.log" >&2; exit 1; }
sed -n 's/.*application\/x-autosam-stats, \(.*\);.*/\1/p' "$out/live.log" | tr ',' '\n' |
    sed -n 's/^ *\([a-z-]*\)=([a-z0-9]*)\([0-9]*\).*/\1 \2/p' |
    awk '{ v[$1] = $2 }
         END {
             if (!("frames" in v)) { print "the element posted no statistics" > "/dev/stderr"; exit 1 }
             printf "%d frames in, %d inferred, %d passed without inference, %d errors\n", v["frames"], v["inferred"], v["skipped"], v["errors"]
             printf "inference %.1f ms (mean), video delay %.2f ms (mean), %.2f ms (max), age of the drawn mask %.1f ms (mean)\n",
                 v["inference-mean"] / 1e6, v["video-delay-mean"] / 1e6, v["video-delay-max"] / 1e6, v["annotation-delay-mean"] / 1e6
         }'

echo "== frame by frame: every frame with its own mask"
"$program" run --input "$clip" --output "$out/overlaid.mp4"
if [ -d "$out/synthetic" ] && [ "$clip" = "$out/clip.mp4" ]; then
    echo "== compared with the synthetic clip's true masks"
    "$program" run --input "$out/synthetic/TrainDataset"
    echo "(The clip shows a single polyp in 150 frames, and one wrong region can persist through most of its polyp-free frames. So"
    echo "these numbers show that the program works, not how good the model is. models/autosam-lite.md has its metrics on public data.)"
fi

if [ -n "${DISPLAY:-}${WAYLAND_DISPLAY:-}" ]; then
    gst-launch-1.0 -q filesrc location="$clip" ! decodebin ! videoconvert ! autosam ! videoconvert ! autovideosink
else
    echo "no display found; with a display, the clip would be shown now"
fi
echo "look at: $out/live.mp4 $out/overlaid.mp4"
