"""More questions about a scene of several things: where each of them is, which colour is where, how each moves.

They are for training alone. A story asks one or two questions that need the thing to be found before its trait can be
told; that step is what a small model learns last, and it is the same step whichever thing and trait is asked about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from cope_training.questions import NOWHERE, TYPES, Question, wording
from cope_training.scenes import COLOURS, Scene, Thing
from cope_training.telling import direction_of, leaves, side_of

_Fact = tuple[str, str, str, Sequence[str]]  # type, name of the thing, answer, among
_NAMING = {*COLOURS, "larger", "smaller", "starts"}


def named_questions(scene: Scene, asked: Sequence[Question], random: np.random.Generator) -> list[Question]:
    """What else can be asked about each of several things.

    Args:
        scene: what is seen.
        asked: questions that exist; none is asked twice.
        random: draws wordings.

    Returns:
        Questions in a training set's wordings; none for a scene of a single thing.
    """
    things = [thing for thing in scene.things if thing.from_s <= 0]
    if len(things) < 2:
        return []
    found = [*_places(things), *_motions(scene, things)]
    known = {(question.type, question.answer, _the(question)) for question in asked}
    out = []
    for type_, the, answer, among in found:
        templates = TYPES[type_].training
        text = wording(templates[int(random.integers(len(templates)))], {"the": the})
        question = Question(type_, text, answer, TYPES[type_].options, tuple(among))
        if (type_, answer, _the(question)) not in known:
            out.append(question)
    return out


def _places(things: Sequence[Thing]) -> list[_Fact]:
    """Side by colour where colours differ, and colour by side where a side has one thing."""
    colours, sides = [thing.colour for thing in things], [side_of(thing) for thing in things]
    if len(set(colours)) < len(colours):
        return []
    out: list[_Fact] = [
        ("side", f"the {colour} object", side, sides) for colour, side in zip(colours, sides, strict=True)
    ]
    alone = Counter(sides)
    return out + [
        ("colour", f"the object that starts on the {side}", colour, colours)
        for colour, side in zip(colours, sides, strict=True)
        if alone[side] == 1
    ]


def _motions(scene: Scene, things: Sequence[Thing]) -> list[_Fact]:
    """Which way each moves, by colour, or by side where two are alike; only if nothing else happens."""
    camera = scene.pan != (0.0, 0.0) or scene.zoom or scene.roll
    legs = [len(thing.legs) for thing in things]
    if camera or len(things) < len(scene.things) or max(legs) != 1 or any(map(leaves, things)):
        return []
    ways = [direction_of(thing.legs[0]) if thing.legs else NOWHERE for thing in things]
    colours = Counter(thing.colour for thing in things)
    names = [
        f"the {thing.colour} object" if colours[thing.colour] == 1 else f"the object on the {side_of(thing)}"
        for thing in things
    ]
    return [("named_direction", name, way, ways) for name, way in zip(names, ways, strict=True)]


def _the(question: Question) -> str:
    """What a question is about, whatever its wording: the words of it that name things."""
    words = set(question.text.lower().replace(",", " ").replace("?", " ").replace(".", " ").split())
    return " ".join(sorted(words & _NAMING))
