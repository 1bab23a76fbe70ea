"""Command-line flags for the video options, shared by the commands that take a video."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console

OPTION_NAMES = ("fps", "keyframes_per_gop", "gop_slots", "start_s", "end_s", "max_gops", "mode", "frames", "stream")
_TYPES: dict[str, type] = {"fps": float, "start_s": float, "end_s": float, "mode": str}
_HELP = {
    "fps": "slots per second (default 1)",
    "keyframes_per_gop": "pictures per GOP (default 1)",
    "gop_slots": "slots per GOP (default 8)",
    "start_s": "start of the clip, seconds",
    "end_s": "end of the clip, seconds",
    "max_gops": "sample longer videos to this many GOPs (default 64)",
    "mode": "native, transcode, paper or auto (default)",
    "frames": "dense baseline: this many RGB frames and no delta-tokens",
    "stream": "which video stream of the file, from 0 (default: the best one)",
}

stdout = Console()
stderr = Console(stderr=True)


def add_option_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--fps`, `--keyframes-per-gop` and the other video options."""
    group = parser.add_argument_group("video options")
    for name in OPTION_NAMES:
        flag = "--" + name.replace("_", "-")
        group.add_argument(flag, dest=name, type=_TYPES.get(name, int), default=None, metavar="X", help=_HELP[name])


def given_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The video options that the user gave."""
    return {name: value for name in OPTION_NAMES if (value := getattr(arguments, name)) is not None}
