"""Kinds of streams, by the arguments of `clips.encoded` that make them."""

from __future__ import annotations

X265 = (("x265-params", "log-level=none:pools=1"),)

# Without timestamps, or with wrong ones.
RAW: dict[str, dict[str, object]] = {
    "h264": {"container": "h264"},
    "h264 without B-frames": {"container": "h264", "b_frames": 0},
    "h264 with a pyramid of B-frames": {"container": "h264", "b_frames": 7, "options": (("b-pyramid", "normal"),)},
    "h264 open GOP": {"container": "h264", "options": (("x264-params", "open-gop=1"),)},
    "h264 with a long GOP": {"container": "h264", "gop": 600},
    "h264 4:4:4": {"container": "h264", "pix_fmt": "yuv444p"},
    "h264 interlaced": {"container": "h264", "fps": 25, "options": (("x264-params", "tff=1"),)},
    "h264 with intra refresh": {"container": "h264", "options": (("x264-params", "intra-refresh=1"),)},
    "h264 in avi": {"container": "avi"},
    "hevc": {"codec": "libx265", "container": "hevc", "options": X265},
    "hevc with long B-frame runs": {"codec": "libx265", "container": "hevc", "options": X265, "b_frames": 6},
    "mpeg4": {"codec": "mpeg4", "container": "m4v"},
    "mpeg4 in avi": {"codec": "mpeg4", "container": "avi"},
    "mpeg4 without B-frames in avi": {"codec": "mpeg4", "container": "avi", "b_frames": 0},
    "mpeg2": {"codec": "mpeg2video", "container": "mpeg2video", "fps": 25},
    "mpeg1": {"codec": "mpeg1video", "container": "mpeg1video", "fps": 25},
}

KINDS: dict[str, dict[str, object]] = {
    "h264 4:4:4": {"pix_fmt": "yuv444p"},
    "h264 10 bit": {"pix_fmt": "yuv420p10le"},
    "h264 every frame a keyframe": {"gop": 1},
    "h264 GOP of 600": {"gop": 600, "b_frames": 0},
    "h264 8 references": {"options": (("refs", "8"), ("bf", "3"))},
    "h264 odd size": {"width": 161, "height": 97, "pix_fmt": "yuv444p"},
    "h264 fragmented": {"muxer": (("movflags", "frag_keyframe+empty_moov"),)},
    "h264 mov": {"container": "mov"},
    "h264 flv": {"container": "flv"},
    "h264 mkv": {"container": "matroska"},
    "h264 ts": {"container": "mpegts"},
    "h264 late start in ts": {"container": "mpegts", "first_s": 100.0},
    "h264 late start in mkv": {"container": "matroska", "first_s": 100.0},
    "mpeg4 qpel 4MV B": {"codec": "mpeg4", "options": (("flags", "+qpel+mv4"),)},
    "mpeg1": {"codec": "mpeg1video", "container": "mpeg", "fps": 25},
    "mpeg2 vob": {"codec": "mpeg2video", "container": "vob", "fps": 25},
    "h263": {"codec": "h263", "container": "avi", "width": 176, "height": 144, "b_frames": 0},
    "h263+": {"codec": "h263p", "container": "avi", "b_frames": 0},
    "flv1": {"codec": "flv1", "container": "flv", "b_frames": 0},
    "msmpeg4": {"codec": "msmpeg4", "container": "avi", "b_frames": 0},
    "msmpeg4v2": {"codec": "msmpeg4v2", "container": "avi", "b_frames": 0},
    "wmv1": {"codec": "wmv1", "container": "asf", "b_frames": 0},
    "wmv2": {"codec": "wmv2", "container": "asf", "b_frames": 0},
    "mjpeg": {"codec": "mjpeg", "container": "avi", "pix_fmt": "yuvj420p", "b_frames": 0},
    "vp9 webm": {"codec": "libvpx-vp9", "container": "webm", "b_frames": 0, "options": (("cpu-used", "8"),)},
    "hevc ts": {"codec": "libx265", "container": "mpegts", "options": X265},
    "hevc 10 bit": {"codec": "libx265", "pix_fmt": "yuv420p10le", "options": X265},
    "cover art": {"container": "mp4", "cover": True},
}
