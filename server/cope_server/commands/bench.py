"""`cope bench codec`: extraction against plain decoding of the same files."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.progress import Progress
from rich.table import Table

from cope_server.commands.video_arguments import stderr, stdout


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `cope bench`."""
    what = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    codec = what.add_parser("codec", help="extraction time as a ratio to a one-thread PyAV decode")
    codec.add_argument("files", nargs="*", type=Path, metavar="FILE", help="default: clips generated for the purpose")
    codec.add_argument("--repeats", type=int, default=7, help="interleaved repetitions (default 7)")
    codec.add_argument("--mode", default="auto", help="native, transcode, paper or auto (default)")
    codec.add_argument("--side", type=int, default=384, help="side of the model's square input, pixels (default 384)")
    codec.add_argument("--quality", action="store_true", help="residual energy over frame-difference energy instead")
    codec.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Measure and report."""
    import av

    from cope_codec.bench import generated, time_file

    if arguments.quality:
        return _quality(arguments)
    if arguments.repeats < 1:
        raise ValueError(f"--repeats must be at least 1, not {arguments.repeats}")
    results: list[dict[str, Any]] = []
    with Progress(console=stderr, transient=True) as progress:
        task = progress.add_task("measuring", total=max(len(arguments.files), 3) * (arguments.repeats + 1))
        sources = [(file.name, file.read_bytes()) for file in arguments.files] or generated()
        for name, data in sources:
            timing = time_file(
                data,
                mode=arguments.mode,
                side=arguments.side,
                repeats=arguments.repeats,
                tick=lambda: progress.advance(task),
            )
            results.append({"file": name, **timing})
    report = {
        "conditions": {
            "python": platform.python_version(),
            "pyav": av.__version__,
            "machine": platform.machine(),
            "side": arguments.side,
            "repeats": arguments.repeats,
            "threads": 1,
        },
        "files": results,
    }
    if arguments.json:
        stdout.print_json(json.dumps(report))
    else:
        stdout.print(_table(results))
    return 0


def _quality(arguments: argparse.Namespace) -> int:
    """Print how much the motion of each mode explains, per file and as geometric means."""
    from cope_codec import open as open_video
    from cope_codec.bench import generated, residual_ratio

    sources = [(file.name, file.read_bytes()) for file in arguments.files] or list(generated())
    rows: list[dict[str, Any]] = []
    with Progress(console=stderr, transient=True) as progress:
        for name, data in progress.track(sources, description="measuring"):
            info = open_video(data).info
            for mode in ("native", "transcode"):
                ratio = residual_ratio(data, mode, arguments.side) if mode != "native" or info.has_vectors else None
                rows.append({"file": name, "codec": info.codec, "mode": mode, "residual_ratio": ratio})
    means = {}
    for mode in ("native", "transcode"):
        ratios = [row["residual_ratio"] for row in rows if row["mode"] == mode and row["residual_ratio"]]
        means[mode] = round(statistics.geometric_mean(ratios), 4) if ratios else None
    if arguments.json:
        stdout.print_json(json.dumps({"side": arguments.side, "files": rows, "geometric_mean": means}))
        return 0
    table = Table(box=SIMPLE_HEAD, caption="residual energy / energy of plain differences; lower is better")
    for heading in ("file", "codec", "mode", "residual ratio"):
        table.add_column(heading, justify="right" if heading == "residual ratio" else "left", overflow="fold")
    for row in rows:
        ratio = row["residual_ratio"]
        table.add_row(row["file"], row["codec"], row["mode"], "-" if ratio is None else f"{ratio:.3f}")
    for mode, mean in means.items():
        table.add_row("geometric mean", "", mode, "-" if mean is None else f"{mean:.3f}", style="bold")
    stdout.print(table)
    return 0


def _table(results: list[dict[str, Any]]) -> Table:
    table = Table(
        box=SIMPLE_HEAD, caption="medians of interleaved repetitions; extraction includes opening and indexing the file"
    )
    for heading in ("file", "codec", "size", "frames", "mode", "decode ms/frame", "extract ms/frame", "ratio"):
        table.add_column(heading, justify="left" if heading in ("file", "codec", "mode") else "right", overflow="fold")
    for row in results:
        table.add_row(
            row["file"],
            row["codec"],
            f"{row['width']}x{row['height']}",
            str(row["frames"]),
            row["mode"],
            f"{row['decode_ms_per_frame']:.3f}",
            f"{row['extract_ms_per_frame']:.3f}",
            f"{row['ratio']:.2f}",
        )
    return table
