"""`cope sample`: draws a clip with a question about its motion, for those who have no video at hand."""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import TYPE_CHECKING

from cope_server.commands.video_arguments import stderr, stdout

if TYPE_CHECKING:
    from cope_training.questions import Question


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `cope sample`."""
    parser.add_argument("out", type=Path, metavar="OUT.mp4")
    add_clip_flags(parser)


def add_clip_flags(parser: argparse.ArgumentParser) -> None:
    """Which clip is drawn."""
    from cope_training.stories import KINDS

    parser.add_argument("--kind", choices=tuple(KINDS), default="move", help="what happens in the clip (default move)")
    parser.add_argument("--seed", type=int, help="draw this clip again (default: another one every time)")


def run(arguments: argparse.Namespace) -> int:
    """Draw, encode, write."""
    question = draw_clip(arguments, arguments.out)
    stdout.print(f"wrote {arguments.out}: {description(arguments)}")
    stdout.print(f"ask it: {question.text} ({question.answer})", highlight=False)
    return 0


def draw_clip(arguments: argparse.Namespace, out: Path) -> Question:
    """Write the clip that the flags describe, and return its question; a seed that was not given is drawn and set."""
    from cope_training import example

    if arguments.seed is None:
        arguments.seed = random.SystemRandom().randrange(1_000_000)
    with stderr.status("drawing and encoding a clip"):
        drawn = example.draw(arguments.kind, arguments.seed)
    out.write_bytes(drawn.data)
    return drawn.question


def description(arguments: argparse.Namespace) -> str:
    """The clip in words, with what it takes to draw it again."""
    how = f"--kind {arguments.kind} --seed {arguments.seed}"
    return f"7.4 s of H.264, just drawn, with a texture that training never saw ({how})"
