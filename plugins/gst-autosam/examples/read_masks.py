#!/usr/bin/python3
"""Reads masks in Python: as video from the pad `mask`, as metadata on frames, and as signals and messages.

    apt install python3-gi gir1.2-gst-plugins-base-1.0
    GST_PLUGIN_PATH=target/release python3 plugins/gst-autosam/examples/read_masks.py clip.mp4
"""

import sys
from pathlib import Path

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstVideo", "1.0")
from gi.repository import Gst, GstVideo  # noqa: E402


def time(buffer):
    return f"{buffer.pts / Gst.SECOND:.2f} s"


def on_mask(sink):
    """The pad `mask`: GRAY8 with the frame's size and time, 255 inside the mask."""
    buffer = sink.emit("pull-sample").get_buffer()
    ok, data = buffer.map(Gst.MapFlags.READ)
    if ok:
        inside = bytes(data.data).count(255)
        buffer.unmap(data)
        if inside:
            print(f"pad:    {time(buffer)} {inside} pixels")
    return Gst.FlowReturn.OK


def on_frame(sink):
    """Regions and mask as metadata of a frame."""
    buffer = sink.emit("pull-sample").get_buffer()
    number = 0
    while region := GstVideo.buffer_get_video_region_of_interest_meta_id(buffer, number):
        confidence = region.get_param("detection").get_value("confidence")
        print(f"meta:   {time(buffer)} {region.w}x{region.h} at {region.x},{region.y}, confidence {confidence:.2f}")
        number += 1
    if meta := buffer.get_custom_meta("GstAutoSamMaskMeta"):
        structure = meta.get_structure()
        size = structure.get_value("width") * structure.get_value("height")
        assert structure.get_value("mask").get_size() == size
    return Gst.FlowReturn.OK


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    Gst.init(None)
    if not Gst.ElementFactory.find("autosam"):
        sys.exit("GStreamer has no element autosam: point GST_PLUGIN_PATH to the folder of libgstautosam.so")
    pipeline = Gst.parse_launch(
        f"uridecodebin uri={Path(sys.argv[1]).resolve().as_uri()} ! videoconvert"
        " ! autosam name=a sync-mode=frame-accurate attach-meta=true"
        " a.src ! queue ! appsink name=frames sync=false emit-signals=true"
        " a.mask ! queue ! appsink name=masks sync=false emit-signals=true"
    )
    pipeline.get_by_name("frames").connect("new-sample", on_frame)
    pipeline.get_by_name("masks").connect("new-sample", on_mask)
    autosam = pipeline.get_by_name("a")
    autosam.connect("detection-started", lambda _, s: print("signal: a detection began:", s.get_value("confidence")))
    pipeline.set_state(Gst.State.PLAYING)
    kinds = Gst.MessageType.EOS | Gst.MessageType.ERROR | Gst.MessageType.ELEMENT
    while message := pipeline.get_bus().timed_pop_filtered(Gst.CLOCK_TIME_NONE, kinds):
        if message.type == Gst.MessageType.ELEMENT:
            if message.get_structure().get_name().startswith("application/x-autosam-"):
                print("bus:   ", message.get_structure().to_string())
            continue
        pipeline.set_state(Gst.State.NULL)
        if message.type == Gst.MessageType.ERROR:
            sys.exit(message.parse_error().gerror.message)
        break


if __name__ == "__main__":
    main()
