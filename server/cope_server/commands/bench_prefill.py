"""`cope bench prefill`: the paper's latency table on this device, with a model of full size and random weights."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable
from functools import partial
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
    table = _by_sampling(
        report,
        "ms, medians of rows in turns; behind the stroke the floor: the larger of its arithmetic and its bytes at the "
        "speeds of this device",
    )
    _line(table, report, "tokens", lambda row: f"{row['prompt_tokens']:,}")
    for name in _PARTS:

        def both(row: dict[str, Any], name: str = name) -> str:
            part = row["parts"][name]
            return f"{_ms(part['s'])} / {_ms(part['floor_s'])}"

        _line(table, report, name, both)
    return table


def _cuts(report: dict[str, Any]) -> Table:
    table = _by_sampling(
        report,
        f"{report['generated_tokens']} generated tokens; in brackets the lowest and the highest; floor: the cut if "
        "every part ran at its floor; paper: one consumer GPU",
    )
    for total, name in (("TTFT", "ttft"), ("E2EL", "e2el")):
        _line(table, report, f"{total} ms", partial(_spread, name=f"{name}_s", shown=_ms))
    for total, name in (("TTFT", "ttft_cut"), ("E2EL", "e2el_cut")):
        _line(table, report, f"{total} cut", partial(_spread, name=name, shown=_percent))
        _line(table, report, "  floor", partial(_known, source="floor", name=name))
        _line(table, report, "  paper", partial(_known, source="paper", name=name))
    _line(table, report, "delta share", lambda row: _percent(row["delta_share"]))
    _line(table, report, "GiB", lambda row: f"{row['peak_bytes'] / 2**30:.1f}")
    return table


def _by_sampling(report: dict[str, Any], caption: str) -> Table:
    """A table with a column for each way of sampling: as many as fit into 80 characters."""
    table = Table(box=SIMPLE_HEAD, caption=caption, pad_edge=False)
    table.add_column("", no_wrap=True)
    for row in report["rows"]:
        table.add_column(row["sampling"], justify="right")
    return table


def _line(table: Table, report: dict[str, Any], name: str, cell: Callable[[dict[str, Any]], str]) -> None:
    table.add_row(name, *(cell(row) for row in report["rows"]))


def _known(row: dict[str, Any], source: str, name: str) -> str:
    return _percent((row[source] or {}).get(name))


def _spread(row: dict[str, Any], name: str, shown: Any) -> str:
    if row[name] is None:
        return "-"
    return f"{shown(row[name])}\n({shown(row[name + '_min'])} - {shown(row[name + '_max'])})"


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
