#!/bin/sh
# Example pipelines with the element autosam, selected by the first argument:
#   examples/pipelines.sh file clip.mp4
#   examples/pipelines.sh webcam [/dev/video0]
#   examples/pipelines.sh rtsp rtsp://127.0.0.1:8554/endo
#   examples/pipelines.sh record clip.mp4 out.mkv        shows and records at the same time
# Set SINK=fakesink if there is no display. The plugin must be installed or in GST_PLUGIN_PATH.
set -eu
sink="${SINK:-autovideosink}"
what="${1:-}"
case "$what" in
file)
    exec gst-launch-1.0 filesrc location="$2" ! decodebin ! videoconvert ! autosam ! videoconvert ! "$sink"
    ;;
webcam)
    exec gst-launch-1.0 v4l2src device="${2:-/dev/video0}" ! decodebin ! videoconvert ! autosam ! videoconvert ! "$sink"
    ;;
rtsp)
    exec gst-launch-1.0 rtspsrc location="$2" latency=0 ! decodebin ! videoconvert ! autosam ! videoconvert ! "$sink"
    ;;
record)
    # The recording branch has its own queue, which drops frames instead of delaying the display.
    exec gst-launch-1.0 -e filesrc location="$2" ! decodebin ! videoconvert ! clocksync ! autosam ! tee name=t \
        t. ! queue ! videoconvert ! "$sink" \
        t. ! queue leaky=downstream max-size-buffers=60 max-size-bytes=0 max-size-time=0 ! videoconvert \
        ! x264enc speed-preset=ultrafast tune=zerolatency ! h264parse ! matroskamux ! filesink location="$3"
    ;;
*)
    sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
