"""`cope ask`: a question about a video to a running server, the answer as it comes, its cost and its times."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.bar import Bar
from rich.table import Table

from cope_server import client
from cope_server.commands.video_arguments import add_option_flags, given_options, stdout
from cope_server.stages import STAGES

_BAR_WIDTH = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `cope ask`."""
    parser.add_argument("video", help="a file, or an http(s) URL that the server can reach")
    parser.add_argument("question")
    parser.add_argument("--url", default=client.DEFAULT_URL, help=f"server (default {client.DEFAULT_URL})")
    parser.add_argument("--model", help="model name (default: the server's first)")
    parser.add_argument("--max-tokens", type=int, default=64, help="longest answer (default 64)")
    add_option_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Ask, and print the answer and the account."""
    remote = arguments.video.startswith(("http://", "https://", "file://", "data:"))
    video_url = arguments.video if remote else client.data_uri(Path(arguments.video))
    url = arguments.url.rstrip("/")
    model = arguments.model or client.first_model(url)
    ask(url, model, video_url, arguments.question, given_options(arguments), arguments.max_tokens)
    return 0


def ask(url: str, model: str, video_url: str, question: str, options: dict[str, Any], max_tokens: int) -> client.Answer:
    """Stream one answer to the terminal, then its times and token account."""
    answer = client.Answer()
    for piece in client.stream(url, model, video_url, question, options, max_tokens, answer):
        stdout.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
    stdout.print()
    stdout.print()
    stdout.print(report(answer), soft_wrap=True)
    if answer.usage.get("timings"):
        stdout.print()
        stdout.print(stage_chart(answer.usage["timings"]), soft_wrap=True)
    return answer


def report(answer: client.Answer) -> Table:
    """Times and tokens of an answer."""
    usage = answer.usage
    video = usage.get("video", {})
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_column(justify="left")
    table.add_column(justify="right")
    table.add_column(justify="left", style="dim")
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
