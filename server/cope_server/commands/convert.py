"""`cope convert`: base checkpoint and delta-encoder to one model directory, and the delta-encoder out again."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from cope_server.commands.video_arguments import stderr, stdout


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `cope convert`."""
    what = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    join = what.add_parser("join", help="write a CoPE directory from a base checkpoint and a delta-encoder")
    join.add_argument("base", type=Path, help="LLaVA-Video checkpoint, or CoPE directory with another delta-encoder")
    join.add_argument("delta", type=Path, help="safetensors file of the delta-encoder")
    join.add_argument("out", type=Path, help="directory to make")
    join.add_argument("--preset", help="shape of the delta-encoder, if its file does not say it: 7b, 7b-light, tiny")
    split = what.add_parser("split", help="write the delta-encoder of a CoPE directory to a file")
    split.add_argument("model", type=Path, help="CoPE directory")
    split.add_argument("out", type=Path, help="safetensors file to write")
    for sub in (join, split):
        sub.add_argument("--overwrite", action="store_true", help="replace what is there")


def run(arguments: argparse.Namespace) -> int:
    """Convert."""
    from cope_model import convert

    for name in ("base", "model"):
        directory = getattr(arguments, name, None)
        if directory is not None and not directory.is_dir():
            raise ValueError(f"{name}: {directory} is no directory; download the checkpoint first")
    if arguments.what == "split":
        convert.split(arguments.model, arguments.out, overwrite=arguments.overwrite)
        if changed := convert.also_trained(arguments.model):
            stderr.print(
                f"note: fine-tuning changed {', '.join(changed)} too, and the file holds the delta-encoder alone: keep "
                f"{arguments.model}, a base that is joined with the file is another model",
                soft_wrap=True,
                markup=False,
                highlight=False,
            )
    else:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Progress(*columns, console=stderr, transient=True) as progress:
            task = progress.add_task("writing", total=None)
            convert.join(
                arguments.base,
                arguments.delta,
                arguments.out,
                preset=arguments.preset,
                overwrite=arguments.overwrite,
                tick=lambda step: progress.update(task, completed=step.done_bytes, total=step.total_bytes),
            )
    stdout.print(f"{arguments.out}", soft_wrap=True)
    return 0
