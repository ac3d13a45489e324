#!/bin/sh
# The main job on the shipped model: a clip goes through the element `autosam` in real time, the overlaid clip is kept.
#   ./demo.sh              makes a synthetic clip (no hospital needed)
#   ./demo.sh CLIP         takes yours
# The pictures are in demo-out/; nothing leaves this machine.
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
        echo "== a synthetic colonoscopy clip: $clip"
        "$program" synth --out "$out/synthetic" --force --sequences 1 --frames 150 --seed 8 --clip "$clip"
    fi
fi

echo "== live, at the clip's own speed: every picture passes, the latest mask is drawn"
gst-launch-1.0 -m filesrc location="$clip" ! decodebin ! videoconvert ! clocksync ! autosam \
    ! queue ! videoconvert ! x264enc speed-preset=ultrafast tune=zerolatency pass=qual quantizer=20 \
    ! h264parse ! mp4mux ! filesink location="$out/live.mp4" >"$out/live.log" || { cat "$out/live.log" >&2; exit 1; }
sed -n 's/.*application\/x-autosam-stats, \(.*\);.*/\1/p' "$out/live.log" | tr ',' '\n' |
    sed -n 's/^ *\([a-z-]*\)=([a-z0-9]*)\([0-9]*\).*/\1 \2/p' |
    awk '{ v[$1] = $2 }
         END {
             if (!("frames" in v)) { print "no statistics came from the element" > "/dev/stderr"; exit 1 }
             printf "%d pictures in, %d inferred, %d passed without inference, %d errors\n", v["frames"], v["inferred"], v["skipped"], v["errors"]
             printf "inference %.1f ms (mean), video delay %.2f ms (mean) %.2f ms (longest), age of the drawn mask %.1f ms (mean)\n",
                 v["inference-mean"] / 1e6, v["video-delay-mean"] / 1e6, v["video-delay-max"] / 1e6, v["annotation-delay-mean"] / 1e6
         }'

echo "== frame by frame: every picture with its own mask"
"$program" run --input "$clip" --output "$out/overlaid.mp4"
if [ -d "$out/synthetic" ] && [ "$clip" = "$out/clip.mp4" ]; then
    echo "== against the synthetic clip's own masks"
    "$program" run --input "$out/synthetic/TrainDataset"
fi

if [ -n "${DISPLAY:-}${WAYLAND_DISPLAY:-}" ]; then
    gst-launch-1.0 -q filesrc location="$clip" ! decodebin ! videoconvert ! autosam ! videoconvert ! autovideosink
else
    echo "no display here; on a workstation this ends with the clip on the screen"
fi
echo "look at: $out/live.mp4 $out/overlaid.mp4"
