"""`cope extract`: the codec primitives of a video as a summary, as arrays, as a picture."""

from __future__ import annotations

import argparse
import json
import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.progress import track
from rich.table import Table

from cope_server.commands.video_arguments import add_option_flags, given_options, stderr, stdout

if TYPE_CHECKING:
    from cope_codec import GopPrimitives, Video

_PLOTTED_GOPS = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `cope extract`."""
    parser.add_argument("video", type=Path)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--out", type=Path, metavar="F.npz", help="write the arrays, named gop<index>.<array>")
    parser.add_argument("--plot", type=Path, metavar="F.png", help="draw keyframes, motion and residual on a time line")
    parser.add_argument("--side", type=int, default=384, help="side of the model's square input, pixels (default 384)")
    add_option_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Extract and report."""
    import cope_codec

    started = time.perf_counter()
    video = cope_codec.open(arguments.video, **given_options(arguments))
    kept: list[GopPrimitives] = []
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        archive = stack.enter_context(zipfile.ZipFile(arguments.out, "w")) if arguments.out else None
        for gop in _progress(video, arguments.side):
            rows.append(_row(gop))
            if archive is not None:
                _store(archive, gop)
            if arguments.plot and len(kept) < _PLOTTED_GOPS:
                kept.append(gop)
    elapsed_s = time.perf_counter() - started
    if arguments.plot:
        from cope_codec.plot import save_plot

        save_plot(kept, arguments.plot, _title(arguments.video.name, video))
    if arguments.json:
        stdout.print_json(json.dumps(_report(video, arguments.side, rows, elapsed_s)))
    else:
        stdout.print(_title(str(arguments.video), video), soft_wrap=True)
        stdout.print(_table(rows, elapsed_s))
        for written in filter(None, (arguments.out, arguments.plot)):
            stdout.print(f"wrote {written}", soft_wrap=True)
    return 0


def _progress(video: Video, side: int) -> Iterator[GopPrimitives]:
    total = len(video.plan.gops)
    yield from track(video.gops(side), "extracting", total=total, console=stderr, transient=True, disable=total < 4)


def _store(archive: zipfile.ZipFile, gop: GopPrimitives) -> None:
    """Append one GOP; `numpy.savez` would hold the whole video in memory."""
    import numpy as np

    extra = {"motion_size": np.array([gop.motion_width, gop.motion_height])}
    for name, array in {**gop.arrays(), **extra}.items():
        with archive.open(f"gop{gop.index}.{name}.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array(file, array, allow_pickle=False)  # type: ignore[no-untyped-call]


def _row(gop: GopPrimitives) -> dict[str, Any]:
    import numpy as np

    motion_px = np.hypot(*np.moveaxis(gop.model_motion().astype(np.float64) / 16, -1, 0))
    return {
        "index": gop.index,
        "key": gop.key,
        "layout": "".join("IP"[kind] for kind in gop.layout),
        "timestamps_s": [round(float(t), 6) for t in gop.timestamps_s],
        "vectors": gop.vectors.tolist(),
        "mean_motion_px": round(float(motion_px.mean()), 3) if motion_px.size else 0.0,
        "mean_abs_residual": round(float(np.abs(gop.residual).mean()), 3) if gop.residual.size else 0.0,
        "missing": gop.missing,
        "corrupt": gop.corrupt,
        "interlaced": gop.interlaced,
        "rotation": gop.rotation,
        "bytes": gop.nbytes,
    }


def _report(video: Video, side: int, rows: list[dict[str, Any]], elapsed_s: float) -> dict[str, Any]:
    info, plan = video.info, video.plan
    return {
        "codec": info.codec,
        "container": info.container,
        "width": info.width,
        "height": info.height,
        "mode": plan.mode,
        "seconds": round(plan.seconds, 3),
        "frames": plan.frames,
        "truncated": video.truncated,
        "side": side,
        "i_frames": plan.i_frames,
        "p_frames": plan.p_frames,
        "extract_s": round(elapsed_s, 4),
        "gops": rows,
    }


def _table(rows: list[dict[str, Any]], elapsed_s: float) -> Table:
    table = Table(box=SIMPLE_HEAD, caption=f"extracted in {elapsed_s * 1e3:.0f} ms; motion in model pixels")
    for heading in ("GOP", "slots", "seconds", "vectors", "mean motion", "mean |residual|", "notes"):
        table.add_column(heading, justify="left" if heading in ("slots", "notes") else "right")
    for row in rows:
        notes = [word for word in ("corrupt", "interlaced") if row[word]]
        notes += [f"{row['missing']} missing"] if row["missing"] else []
        times = row["timestamps_s"]
        table.add_row(
            str(row["index"]),
            row["layout"],
            f"{times[0]:.2f}-{times[-1]:.2f}",
            f"{sum(row['vectors']):,}",
            f"{row['mean_motion_px']:.2f}",
            f"{row['mean_abs_residual']:.2f}",
            ", ".join(notes),
        )
    return table


def _title(name: str, video: Video) -> str:
    info, plan = video.info, video.plan
    broken = ", truncated" if video.truncated else ""
    return f"{name}: {info.codec} {info.width}x{info.height}, {plan.seconds:.2f} s, {plan.mode}{broken}"
