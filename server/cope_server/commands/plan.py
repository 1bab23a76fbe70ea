"""`cope plan`: slots and tokens of a video, without decoding a frame."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from cope_server.account import plan_account
from cope_server.commands.video_arguments import add_option_flags, given_options, stdout


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `cope plan`."""
    parser.add_argument("video", type=Path)
    parser.add_argument("--preset", default="7b", help="model whose tokens are counted: 7b (default), 7b-light, tiny")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_option_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the plan."""
    import cope_codec
    from cope_model.presets import PRESETS

    if arguments.preset not in PRESETS:
        raise ValueError(f"unknown preset {arguments.preset!r}; known are {', '.join(PRESETS)}")
    video = cope_codec.open(arguments.video, **given_options(arguments))
    account = plan_account([video.plan], PRESETS[arguments.preset].geometry)
    account["video_tokens"] = account["i_tokens"] + account["p_tokens"]
    if arguments.json:
        stdout.print_json(json.dumps(account))
    else:
        info = video.info
        stdout.print(
            f"{arguments.video}: {info.codec} {info.width}x{info.height}, {account['seconds']:.2f} s", soft_wrap=True
        )
        stdout.print(_table(arguments.preset, video, account))
    return 0


def _table(preset: str, video: Any, account: dict[str, Any]) -> Table:
    plan = video.plan
    table = Table(box=SIMPLE_HEAD)
    for heading in ("", "slots", "tokens"):
        table.add_column(heading, justify="left" if not heading else "right")
    table.add_row("keyframes (I)", f"{account['i_frames']:,}", f"{account['i_tokens']:,}")
    table.add_row("delta slots (P)", f"{account['p_frames']:,}", f"{account['p_tokens']:,}")
    sampled = f" of {plan.total_gops}" if plan.total_gops > account["gops"] else ""
    label = f"{account['mode']}, {account['gops']}{sampled} GOPs"
    table.add_row(label, f"{account['i_frames'] + account['p_frames']:,}", f"{account['video_tokens']:,}", style="bold")
    saved = 1 - account["video_tokens"] / account["dense_tokens"] if account["dense_tokens"] else 0.0
    table.add_row(f"dense, {plan.dense_frames} RGB frames", f"{plan.dense_frames}", f"{account['dense_tokens']:,}")
    note = (
        f"{saved:.0%} fewer than dense" if saved > 0 else f"more than dense, which stops at {plan.dense_frames} frames"
    )
    table.caption = f"tokens of preset {preset}; {note}"
    return table
