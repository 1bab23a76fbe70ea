"""`cope bench prefill`: the paper's latency table on this device, with a model of full size and random weights."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from cope_server.commands.video_arguments import stderr, stdout

_PARTS = ("transfer", "vision", "delta", "projector", "prefill", "decode")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `cope bench prefill`."""
    parser.add_argument("--preset", choices=("7b", "7b-light", "tiny"), default="7b", help="model shape (default 7b)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float16", "float32"), help="default: bfloat16 on a GPU, float32 on a CPU"
    )
    parser.add_argument("--repeats", type=int, default=10, help="timed requests per row, rows in turns (default 10)")
    parser.add_argument("--no-graphs", action="store_true", help="decode without CUDA graphs")
    parser.add_argument("--compile", action="store_true", help="let torch.compile fuse small operations (minutes)")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the JSON there too")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Measure and report."""
    import torch

    from cope_model.prefill import measure

    if arguments.out is not None and not arguments.out.parent.is_dir():
        raise ValueError(f"--out: there is no folder {arguments.out.parent}")  # told before the minutes, not after
    logging.getLogger("cope_model").setLevel(logging.ERROR)  # what it warns of stands in the report's notes
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr, transient=True) as progress:
        task = progress.add_task("starting", total=1.0)
        report = measure(
            arguments.preset,
            device=arguments.device,
            dtype=getattr(torch, arguments.dtype) if arguments.dtype else None,
            repeats=arguments.repeats,
            graphs=not arguments.no_graphs,
            compile_layers=arguments.compile,
            tick=lambda what, part: progress.update(task, description=what, advance=part),
        )
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if arguments.json:
        stdout.print_json(json.dumps(report))
        return 0
    stdout.print(_times(report), _cuts(report))
    for note in report["notes"]:
        stdout.print(f"note: {note}", style="yellow", highlight=False, soft_wrap=True)
    stdout.print(_told(report), style="dim", soft_wrap=True)
    return 0


def _times(report: dict[str, Any]) -> Table:
    table = Table(
        box=SIMPLE_HEAD,
        caption="ms, medians of rows in turns; behind the stroke the floor: the larger of its arithmetic and its "
        "bytes at the speeds of this device",
    )
    table.add_column("sampling")
    for heading in ("tokens", *_PARTS):
        table.add_column(heading, justify="right")
    for row in report["rows"]:
        cells = [f"{_ms(part['s'])} / {_ms(part['floor_s'])}" for part in (row["parts"][name] for name in _PARTS)]
        table.add_row(row["sampling"], f"{row['prompt_tokens']:,}", *cells)
    return table


def _cuts(report: dict[str, Any]) -> Table:
    table = Table(
        box=SIMPLE_HEAD,
        caption=f"{report['generated_tokens']} generated tokens; in brackets the lowest and the highest; floor: the "
        "cut if every part ran at its floor; paper: one consumer GPU",
    )
    table.add_column("sampling")
    for heading in ("TTFT ms", "E2EL ms", "TTFT cut", "floor", "paper", "E2EL cut", "floor", "paper", "delta", "GiB"):
        table.add_column(heading, justify="right")
    for row in report["rows"]:
        paper = row["paper"] or {}
        table.add_row(
            row["sampling"],
            _spread(row, "ttft_s", _ms),
            _spread(row, "e2el_s", _ms),
            _spread(row, "ttft_cut", _percent),
            _percent(row["floor"]["ttft_cut"]),
            _percent(paper.get("ttft_cut")),
            _spread(row, "e2el_cut", _percent),
            _percent(row["floor"]["e2el_cut"]),
            _percent(paper.get("e2el_cut")),
            _percent(row["delta_share"]),
            f"{row['peak_bytes'] / 2**30:.1f}",
        )
    return table


def _spread(row: dict[str, Any], name: str, shown: Any) -> str:
    if row[name] is None:
        return "-"
    return f"{shown(row[name])} ({shown(row[name + '_min'])} - {shown(row[name + '_max'])})"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _told(report: dict[str, Any]) -> str:
    noted = report["conditions"]
    roof = noted["roof"]
    return (
        f"{report['preset']}, {report['weights_bytes'] / 1e9:.2f} GB of weights in {noted['dtype']}, on "
        f"{noted['device']} ({roof['flops_per_s'] / 1e12:.2f} TFLOP/s, {roof['bytes_per_s'] / 1e9:.0f} GB/s); "
        f"CUDA graphs {'on' if noted['cuda_graphs'] else 'off'}, torch.compile {'on' if noted['compiled'] else 'off'}; "
        f"{noted['threads']} threads, load {noted['load_1min']}; torch {noted['torch']}, "
        f"transformers {noted['transformers']}, Python {noted['python']}; {noted['date']}"
    )
