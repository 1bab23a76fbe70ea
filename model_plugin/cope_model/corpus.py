"""Text that the small model's tokenizer is trained on: our own sentences, and what its questions are made of."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

_SENTENCES = Path(__file__).parent / "data" / "corpus.txt"
_COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "white", "black", "grey", "pink", "brown", "cyan")
_SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "ellipse", "rectangle", "diamond", "bar")
_SIZES = ("small", "large", "big", "tiny")
_DIRECTIONS = ("left", "right", "up", "down", "forward", "backward", "clockwise", "counterclockwise", "in", "out")
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_VERBS = ("moves", "rolls", "slides", "turns", "rotates", "jumps", "falls", "rises", "stops", "appears", "disappears")
_ADVERBS = ("slowly", "quickly", "early", "late", "first", "last", "twice", "again", "suddenly", "steadily")
_PLACES = ("on the left", "on the right", "at the top", "at the bottom", "in the middle", "in the corner")
# Answers begin without a space, so the same words inside of sentences teach nothing about them.
_ANSWERS = (
    "left right up down nowhere in out clockwise counterclockwise early late slow fast grows shrinks appears "
    "disappears one two three yes no circle square triangle cross red yellow green cyan blue purple"
).split()
_REPEATED = 40  # times: often enough that each becomes one token


def sentences() -> Iterator[str]:
    """All lines, always in the same order."""
    yield from _SENTENCES.read_text(encoding="utf-8").splitlines()
    for colour, shape in itertools.product(_COLOURS, _SHAPES):
        yield f"The {colour} {shape} moves. Which way does the {colour} {shape} move?"
    for shape, direction in itertools.product(_SHAPES, _DIRECTIONS):
        yield f"The {shape} moves {direction}."
    for verb, adverb in itertools.product(_VERBS, _ADVERBS):
        yield f"It {verb} {adverb}."
    for size, colour, place in itertools.product(_SIZES, _COLOURS, _PLACES):
        yield f"What is the {size} {colour} object {place}?"
    for number, shape in itertools.product(_NUMBERS, _SHAPES):
        yield f"There are {number} {shape}s."
    for count in range(101):
        yield f"After {count} seconds. The answer is {count}."
    for _ in range(_REPEATED):
        yield from _ANSWERS
