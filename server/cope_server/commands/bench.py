"""`cope bench codec`: extraction against plain decoding; `delta`, `prefill` and `serve` have modules of their own."""

from __future__ import annotations

import argparse
import json
import statistics
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.progress import Progress
from rich.table import Table

from cope_server.commands import bench_delta, bench_prefill, bench_serve
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
    codec.add_argument("--peers", action="store_true", help="measure mv-extractor and lmms-video-utils in the same run")
    codec.add_argument(
        "--peer-python", type=Path, metavar="PATH", help="a Python that has the peers (default: the one running)"
    )
    codec.add_argument(
        "--scaling",
        type=int,
        nargs="?",
        const=64,
        metavar="SECONDS",
        help="the codec pool with one worker and with all cores, on a generated 720p clip (default 64 s)",
    )
    codec.add_argument(
        "--sampled",
        type=int,
        nargs="?",
        const=3600,
        metavar="SECONDS",
        help="8 sampled GOPs of a long generated 720p file (default one hour, 0.4 GB, deleted afterwards)",
    )
    codec.add_argument("--json", action="store_true", help="print JSON")
    bench_delta.add_arguments(
        what.add_parser("delta", help="time of a P-frame in the delta-encoder against a keyframe in SigLIP")
    )
    bench_prefill.add_arguments(
        what.add_parser("prefill", help="TTFT and E2EL of the whole model with random weights, dense and codec")
    )
    bench_serve.add_arguments(
        what.add_parser("serve", help="our front end against vLLM's own, and questions on a video that was read before")
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure and report."""
    commands = {"codec": _codec, "delta": bench_delta.run, "prefill": bench_prefill.run, "serve": bench_serve.run}
    return commands[arguments.what](arguments)


def _codec(arguments: argparse.Namespace) -> int:
    from cope_codec.bench import conditions

    if arguments.repeats < 1:
        raise ValueError(f"--repeats must be at least 1, not {arguments.repeats}")
    if arguments.peer_python is not None and not arguments.peers:
        raise ValueError("--peer-python needs --peers")
    if arguments.quality:
        return _quality(arguments)
    report: dict[str, Any] = {
        "conditions": {**conditions(), "side": arguments.side, "repeats": arguments.repeats, "threads": 1}
    }
    parts: list[RenderableType] = []
    whole_file = not (arguments.scaling or arguments.sampled) or arguments.files or arguments.peers
    if whole_file:
        report["files"] = _files(arguments, report["conditions"])
        parts.append(_table(report["files"]))
        if arguments.peers:
            parts.append(_peer_table(report["files"]))
    if arguments.scaling:
        report["scaling"] = _scaling(arguments)
        parts.append(_scaling_table(report["scaling"]))
    if arguments.sampled:
        report["sampled"] = _sampled(arguments)
        parts.append(_sampled_table(report["sampled"]))
    if arguments.json:
        stdout.print_json(json.dumps(report))
    else:
        stdout.print(*parts)
        stdout.print(_told(report["conditions"]), style="dim")
    return 0


def _files(arguments: argparse.Namespace, noted: dict[str, Any]) -> list[dict[str, Any]]:
    from cope_codec.bench import PeerProcess, available, generated, time_file

    results: list[dict[str, Any]] = []
    with ExitStack() as stack:
        peers = []
        if arguments.peers:
            process = stack.enter_context(PeerProcess(arguments.peer_python))
            peers = available(process)
            noted["peers"] = process.versions
        progress = stack.enter_context(Progress(console=stderr, transient=True))
        task = progress.add_task("measuring", total=(len(arguments.files) or 3) * (arguments.repeats + 1))
        for name, data in [(file.name, file.read_bytes()) for file in arguments.files] or generated():
            timing = time_file(
                data,
                mode=arguments.mode,
                side=arguments.side,
                repeats=arguments.repeats,
                peers=peers,
                tick=lambda: progress.advance(task),
            )
            results.append({"file": name, **timing})
    return results


def _scaling(arguments: argparse.Namespace) -> dict[str, Any]:
    from cope_codec.bench import scaling_clip, time_scaling

    with Progress(console=stderr, transient=True) as progress:
        task = progress.add_task("drawing, encoding", total=None)
        data = scaling_clip(arguments.scaling)
        progress.update(task, description="one core, all cores", total=arguments.repeats + 1)
        timing = time_scaling(data, side=arguments.side, repeats=arguments.repeats, tick=lambda: progress.advance(task))
    return {"clip_s": arguments.scaling, **timing}


def _sampled(arguments: argparse.Namespace) -> dict[str, Any]:
    from cope_codec.bench import long_file, time_sampled

    with ExitStack() as stack:
        progress = stack.enter_context(Progress(console=stderr, transient=True))
        task = progress.add_task("drawing, encoding", total=None)
        path = stack.enter_context(long_file(arguments.sampled))
        progress.update(task, description="decoding, extracting", total=arguments.repeats + 1)
        return time_sampled(path, side=arguments.side, repeats=arguments.repeats, tick=lambda: progress.advance(task))


def _quality(arguments: argparse.Namespace) -> int:
    """Print how much the motion of each mode explains, per file and as geometric means of those that count."""
    from cope_codec import open as open_video
    from cope_codec.bench import counts_for_quality, generated, residual_ratio

    sources = [(file.name, file.read_bytes()) for file in arguments.files] or list(generated())
    rows: list[dict[str, Any]] = []
    with Progress(console=stderr, transient=True) as progress:
        for name, data in progress.track(sources, description="measuring"):
            video = open_video(data)
            info, counted = video.info, counts_for_quality(video)
            for mode in ("native", "transcode"):
                ratio = residual_ratio(data, mode, arguments.side) if mode != "native" or info.has_vectors else None
                rows.append(
                    {"file": name, "codec": info.codec, "mode": mode, "residual_ratio": ratio, "counted": counted}
                )
    means = {}
    for mode in ("native", "transcode"):
        counted_rows = [row for row in rows if row["mode"] == mode and row["counted"]]
        ratios = [row["residual_ratio"] for row in counted_rows if row["residual_ratio"]]
        means[mode] = round(statistics.geometric_mean(ratios), 4) if ratios else None
    if arguments.json:
        stdout.print_json(json.dumps({"side": arguments.side, "files": rows, "geometric_mean": means}))
        return 0
    table = Table(
        box=SIMPLE_HEAD,
        caption="residual energy / energy of plain differences; lower is better; in brackets: not in the "
        "mean, which is of H.264 of at least 2 s and 240 lines",
    )
    for heading in ("file", "codec", "mode", "residual ratio"):
        table.add_column(heading, justify="right" if heading == "residual ratio" else "left", overflow="fold")
    for row in rows:
        ratio = row["residual_ratio"]
        shown = "-" if ratio is None else f"{ratio:.3f}" if row["counted"] else f"({ratio:.3f})"
        table.add_row(row["file"], row["codec"], row["mode"], shown)
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


def _peer_table(results: list[dict[str, Any]]) -> Table:
    from cope_codec.bench import PEERS

    table = Table(box=SIMPLE_HEAD, caption="each peer in a process of its own, on one core, in turns with the above")
    for heading in ("file", "peer", "ms/frame", "ratio", "what it does"):
        table.add_column(heading, justify="right" if heading in ("ms/frame", "ratio") else "left", overflow="fold")
    for row in results:
        for name, figures in row["peers"].items():
            if "failed" in figures:
                table.add_row(row["file"], name, "-", "-", figures["failed"], style="yellow")
            else:
                table.add_row(
                    row["file"], name, f"{figures['ms_per_frame']:.3f}", f"{figures['ratio']:.2f}", PEERS[name]
                )
    return table


def _scaling_table(row: dict[str, Any]) -> Table:
    table = Table(box=SIMPLE_HEAD, caption=f"codec pool, {row['clip_s']} s of 1280x720 H.264, opened and extracted")
    for heading in ("GOPs", "1 worker, 1 core (s)", f"{row['workers']} workers (s)", "speed-up"):
        table.add_column(heading, justify="right")
    table.add_row(str(row["gops"]), f"{row['one_s']:.2f}", f"{row['all_s']:.2f}", f"{row['speed_up']:.2f}")
    return table


def _sampled_table(row: dict[str, Any]) -> Table:
    table = Table(
        box=SIMPLE_HEAD,
        caption=f"{row['gops']} GOPs of {row['seconds']:.0f} s of 1280x720 H.264 ({row['bytes'] / 1e6:.0f} MB), "
        "against decoding just their packets",
    )
    for heading in ("frames", "decode (s)", "open, index, plan (s)", "extract (s)", "ratio"):
        table.add_column(heading, justify="right")
    table.add_row(
        str(row["frames"]),
        f"{row['decode_s']:.2f}",
        f"{row['open_s']:.3f}",
        f"{row['extract_s']:.2f}",
        f"{row['ratio']:.2f}",
    )
    return table


def _told(noted: dict[str, Any]) -> str:
    return (
        f"{noted['cpu']}, {noted['cores']} cores, load {noted['load_1min']}; Python {noted['python']}, "
        f"PyAV {noted['pyav']}, numpy {noted['numpy']}"
    )
