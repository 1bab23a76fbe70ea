"""`cope sample`: writes the demo's clip, for those who have no video at hand."""

from __future__ import annotations

import argparse
from pathlib import Path

from cope_server.commands.video_arguments import stderr, stdout


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `cope sample`."""
    parser.add_argument("out", type=Path, metavar="OUT.mp4")


def run(arguments: argparse.Namespace) -> int:
    """Draw, encode, write."""
    from cope_codec import samples

    with stderr.status("drawing and encoding a 16 s clip"):
        arguments.out.write_bytes(samples.demo_clip())
    stdout.print(f"wrote {arguments.out}: 16 s, 640x360, H.264 with B-frames")
    return 0
