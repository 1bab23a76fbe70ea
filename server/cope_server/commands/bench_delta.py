"""`cope bench delta`: a P-frame in the delta-encoder against a keyframe in the vision encoder."""

from __future__ import annotations

import argparse
import json
import platform

from rich.box import SIMPLE_HEAD
from rich.progress import Progress
from rich.table import Table

from cope_server.commands.video_arguments import stderr, stdout


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `cope bench delta`."""
    parser.add_argument("presets", nargs="*", metavar="PRESET", help="default: 7b 7b-light")
    parser.add_argument("--batch", type=int, default=16, help="frames per call (default 16)")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved repetitions (default 5)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda ...")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print what a P-frame costs, by preset."""
    import torch

    from cope_model.bench import delta_cost

    presets = arguments.presets or ["7b", "7b-light"]
    with Progress(console=stderr, transient=True) as progress:
        task = progress.add_task("measuring", total=(len(presets) + 1) * (arguments.repeats + 1))
        report = delta_cost(
            presets,
            batch=arguments.batch,
            repeats=arguments.repeats,
            device=arguments.device,
            dtype=getattr(torch, arguments.dtype),
            tick=lambda: progress.advance(task),
        )
    report["conditions"] = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if arguments.device.startswith("cuda") else platform.machine(),
        "threads": torch.get_num_threads(),
        "dtype": arguments.dtype,
        "batch": arguments.batch,
        "repeats": arguments.repeats,
    }
    if arguments.json:
        stdout.print_json(json.dumps(report))
        return 0
    table = Table(box=SIMPLE_HEAD, caption=f"encoders alone, {arguments.batch} frames per call, medians")
    for heading in ("encoder", "parameters", "ms per frame", "of a keyframe"):
        table.add_column(heading, justify="left" if heading == "encoder" else "right")
    vision = report["vision"]
    table.add_row("vision, a keyframe", f"{vision['parameters'] / 1e6:.1f}M", f"{vision['ms_per_frame']:.2f}", "")
    for name, row in report["presets"].items():
        table.add_row(
            f"delta {name}, a P-frame",
            f"{row['parameters'] / 1e6:.1f}M",
            f"{row['ms_per_frame']:.2f}",
            f"{row['ratio']:.1%}",
        )
    stdout.print(table)
    return 0
