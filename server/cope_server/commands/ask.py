"""`cope ask`: a question about a video to a running server, the answer as it comes, its cost and its times."""

from __future__ import annotations

import argparse
import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.bar import Bar
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from cope_server import client
from cope_server.commands.video_arguments import OPTION_NAMES, add_option_flags, given_options, stderr, stdout
from cope_server.stages import STAGES

_BAR_WIDTH = 40
# An upload that this command cannot delete, because it was killed, is gone after the shortest time that there is.
_EXPIRES_AFTER_S = 3600


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `cope ask`."""
    parser.add_argument(
        "video",
        metavar="VIDEO",
        help="a file, which is uploaded; a URL (http, https, file, data), which the server fetches; "
        "or file-..., the id of an uploaded file",
    )
    parser.add_argument("question", metavar="QUESTION")
    parser.add_argument("--url", default=client.DEFAULT_URL, help=f"server (default {client.DEFAULT_URL})")
    parser.add_argument("--model", help="model name (default: the server's first)")
    parser.add_argument("--max-tokens", type=int, default=64, metavar="N", help="longest answer (default 64)")
    parser.add_argument("--keep", action="store_true", help="leave the upload on the server, and print its id")
    add_option_flags(parser)


@dataclass(frozen=True, slots=True)
class Upload:
    """A video that was sent beforehand.

    Attributes:
        file_id: its id.
        size_bytes: of the file.
        seconds: that it took.
    """

    file_id: str
    size_bytes: int
    seconds: float


def run(arguments: argparse.Namespace) -> int:
    """Ask, and print the answer and the account."""
    url, options = arguments.url.rstrip("/"), given_options(arguments)
    # What the server would refuse is told before a long upload, not after it.
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"--url must begin with http:// or https://, not {arguments.url!r}")
    if not arguments.question.strip():
        raise ValueError("QUESTION is empty")
    if arguments.max_tokens < 1:
        raise ValueError(f"--max-tokens must be at least 1, not {arguments.max_tokens}")
    _check_options(options)
    try:
        with _video(url, arguments) as (part, upload):
            model = arguments.model or client.first_model(url)
            ask(url, model, client.video_part(part, options), arguments.question, arguments.max_tokens, upload)
    except client.ServerError as error:
        raise client.ServerError(f"{error}{_place(error.param)}", error.code) from error
    return 0


def _check_options(options: Mapping[str, Any]) -> None:
    """Refuse options as the server would; without the codec package, only the server can tell."""
    if not options or find_spec("av") is None or find_spec("numba") is None:
        return
    from cope_codec.errors import CodecError
    from cope_codec.options import VideoOptions

    try:
        VideoOptions.from_mapping(options)
    except CodecError as error:
        raise client.ServerError(f"{error}{_place(error.param)}", error.code) from error


def _place(param: str | None) -> str:
    """What the user wrote that a refusal speaks of; empty if it is the request as a whole."""
    name = (param or "").rpartition(".")[2]
    if name in OPTION_NAMES:
        return f" (--{name.replace('_', '-')})"
    return {
        "model": " (--model)",
        "max_completion_tokens": " (--max-tokens)",
        "file": " (VIDEO)",
        "video_url": " (VIDEO)",
    }.get(name, "")


@contextmanager
def _video(url: str, arguments: argparse.Namespace) -> Iterator[tuple[str, Upload | None]]:
    """The URL or the id that names the video to the server; an upload is deleted at the end of the block.

    Raises:
        OSError: there is no such file.
        ServerError: the upload was refused.
    """
    named: str = arguments.video
    path = Path(named)
    if named.startswith(("http://", "https://", "file://", "data:")) or (
        named.startswith("file-") and not path.exists()
    ):
        if arguments.keep:
            raise ValueError("--keep: only a file that is uploaded can be kept")
        yield named, None
        return
    if "://" in named and not path.exists():
        raise ValueError(
            f"VIDEO: URLs begin with http://, https://, file:// or data:, not {named.partition('://')[0]}://"
        )
    upload = _send(url, path, None if arguments.keep else _EXPIRES_AFTER_S)
    try:
        yield upload.file_id, upload
    finally:
        if arguments.keep:
            stdout.print(f"\nkept as {upload.file_id}", highlight=False, soft_wrap=True)
        else:
            _forget(url, upload.file_id)


def _send(url: str, path: Path, expires_after_s: int | None) -> Upload:
    """Upload a file, with a bar on the terminal that goes when it is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    watching = Progress(*columns, TimeRemainingColumn(), console=stderr, transient=True, disable=not stderr.is_terminal)
    with path.open("rb") as file, watching as progress:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"VIDEO: {path} is no ordinary file")
        started = time.perf_counter()
        with progress.wrap_file(file, total=status.st_size, description="upload") as watched:
            file_id = client.upload(url, watched, path.name, expires_after_s)
        return Upload(file_id, status.st_size, time.perf_counter() - started)


def _forget(url: str, file_id: str) -> None:
    try:
        client.delete_file(url, file_id)
    except client.ServerError as error:
        stderr.print(f"the upload {file_id} could not be deleted ({error}); it expires within an hour", markup=False)


def ask(
    url: str, model: str, part: Mapping[str, Any], question: str, max_tokens: int, upload: Upload | None = None
) -> client.Answer:
    """Stream one answer to the terminal, then its times and token account."""
    answer = client.Answer()
    try:
        for piece in client.stream(url, model, part, question, max_tokens, answer):
            stdout.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
    finally:
        if answer.text:
            stdout.print()
    stdout.print()
    stdout.print(report(answer, upload), soft_wrap=True)
    if answer.usage.get("timings"):
        stdout.print()
        stdout.print(stage_chart(answer.usage["timings"]), soft_wrap=True)
    return answer


def report(answer: client.Answer, upload: Upload | None = None) -> Table:
    """Times and tokens of an answer, and of the upload before it."""
    usage = answer.usage
    video = usage.get("video", {})
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_column(justify="left")
    table.add_column(justify="right")
    table.add_column(justify="left", style="dim")
    if upload is not None:
        table.add_row("upload", f"{upload.seconds * 1e3:,.0f} ms", f"{decimal(upload.size_bytes)}, before the request")
    ttft = "-" if answer.ttft_s is None else f"{answer.ttft_s * 1e3:,.0f} ms"
    table.add_row("TTFT", ttft, "from sending the request to the first token")
    table.add_row("E2EL", f"{answer.e2el_s * 1e3:,.0f} ms", f"{usage.get('completion_tokens', 0)} tokens")
    if video:
        prompt = usage.get("prompt_tokens", 0)
        text = prompt - video["i_tokens"] - video["p_tokens"]
        table.add_row("I tokens", f"{video['i_tokens']:,}", f"{video['i_frames']} keyframes")
        table.add_row("P tokens", f"{video['p_tokens']:,}", f"{video['p_frames']} delta slots, {video['mode']}")
        table.add_row("text tokens", f"{text:,}", "")
        table.add_row("prompt", f"{prompt:,}", f"{video['seconds']:.1f} s of video in {video['gops']} GOPs")
        dense = video["dense_tokens"]
        dense_frames = dense * video["i_frames"] // max(video["i_tokens"], 1)
        saved = 1 - (video["i_tokens"] + video["p_tokens"]) / dense if dense else 0.0
        note = f"would have been; {saved:.0%} fewer video tokens" if saved > 0 else ""
        table.add_row(f"{dense_frames} dense frames", f"{dense:,}", note)
    return table


def stage_chart(timings: Mapping[str, float | None]) -> Table:
    """The stages of the time to the first token as bars, each where the one before it ends.

    Args:
        timings: `usage.timings`, seconds; stages without a time are left out.
    """
    stages = [(stage, seconds) for stage in STAGES if (seconds := timings.get(stage)) is not None]
    whole = sum(seconds for _, seconds in stages)
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_column(justify="left")
    table.add_column(justify="right")
    table.add_column(width=_BAR_WIDTH)
    begin = 0.0
    for stage, seconds in stages:
        table.add_row(stage, f"{seconds * 1e3:,.1f} ms", Bar(whole, begin, begin + seconds, width=_BAR_WIDTH))
        begin += seconds
    return table
