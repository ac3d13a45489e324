#!/usr/bin/python3
"""Serves a clip over RTSP on loopback, as a test camera or, with --marked, as a server of the clip with overlay.

    apt install python3-gi gir1.2-gst-rtsp-server-1.0
    examples/rtsp_server.py clip.mp4                                   # then: examples/pipelines.sh rtsp rtsp://127.0.0.1:8554/endo
    GST_PLUGIN_PATH=target/release examples/rtsp_server.py clip.mp4 --marked

Each client gets the clip from its beginning, at its own speed. With --marked all clients share one stream and one network.
"""

import argparse
import sys
from pathlib import Path

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402


def main():
    usage = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usage.add_argument("clip", type=Path)
    usage.add_argument("--marked", action="store_true", help="draw the overlay with the element autosam")
    usage.add_argument("--port", default="8554", help="port to serve on; 0 chooses a free one")
    args = usage.parse_args()
    if not args.clip.is_file():
        sys.exit(f"{args.clip}: no such file")
    Gst.init(None)
    if args.marked and not Gst.ElementFactory.find("autosam"):
        sys.exit("GStreamer has no element autosam: point GST_PLUGIN_PATH to the folder of libgstautosam.so")

    overlay = "! clocksync ! autosam ! videoconvert" if args.marked else ""
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(
        f"( uridecodebin uri={args.clip.resolve().as_uri()} ! videoconvert {overlay} ! video/x-raw,format=I420"
        " ! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=25 ! rtph264pay name=pay0 pt=96 )"
    )
    factory.set_shared(args.marked)
    server = GstRtspServer.RTSPServer()
    # Loopback only: patients' video leaves the machine only if the user decides so.
    server.set_address("127.0.0.1")
    server.set_service(args.port)
    server.get_mount_points().add_factory("/endo", factory)
    if server.attach(None) == 0:
        sys.exit(f"port {args.port} is taken; choose another with --port")
    print(f"rtsp://127.0.0.1:{server.get_bound_port()}/endo", flush=True)
    try:
        GLib.MainLoop().run()
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
