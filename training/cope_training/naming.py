"""More questions about a scene of several things: where each of them is, what is where, how each moves.

They are for training alone. A story asks one or two questions that need the thing to be found before its trait can be
told; that step is what a small model learns last, and it is the same step whichever thing and trait is asked about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from cope_training.question_types import CORNERS, NOTHING, NOWHERE, TYPES
from cope_training.questions import Question, fields_of, wording
from cope_training.scenes import Scene, Thing
from cope_training.telling import MIDDLE_PX, direction_of, leaves, side_of

_Fact = tuple[str, str, str, Sequence[str]]  # type, name of the thing (empty: it needs none), answer, among
_CLEAR_PX = 10.0  # of the middle: a thing that is closer to it is in no corner


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
    if len(scene.things) < 2:
        return []
    looks = [*_places(things), *_corners(things)] if len(things) > 1 else []
    found = [*looks, *_motions(scene, things)]
    known = {(question.type, (fields_of(question) or {}).get("the", "")) for question in asked}
    out = []
    for type_, the, answer, among in found:
        templates = TYPES[type_].training
        text = wording(templates[int(random.integers(len(templates)))], {"the": the} if the else {})
        question = Question(type_, text, answer, TYPES[type_].options, tuple(among))
        if (type_, the) not in known:
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


def _corners(things: Sequence[Thing]) -> list[_Fact]:
    """Corner by colour, colour by corner and what is in each; where each thing has its own colour and corner."""
    corners = _own_corners(things)
    colours = [thing.colour for thing in things]
    if not corners or len(set(colours)) < len(colours):
        return []
    inside = dict(zip(corners, colours, strict=True))
    return [
        *(("contents", f"the {at}", inside.get(at, NOTHING), (*colours, NOTHING)) for at in CORNERS),
        *(("corner", f"the {colour} object", at, corners) for colour, at in zip(colours, corners, strict=True)),
        *(("colour", _starting(at), colour, colours) for colour, at in zip(colours, corners, strict=True)),
    ]


def _own_corners(things: Sequence[Thing]) -> list[str]:
    """Each thing's corner at the start; empty if two share one or one is in none."""
    corners = [corner_of(thing) for thing in things]
    return corners if all(corners) and len(set(corners)) == len(corners) else []


def corner_of(thing: Thing) -> str:
    """Corner of the picture that a thing is in at the start; empty if it is too close to a middle line."""
    if min(abs(thing.x - MIDDLE_PX), abs(thing.y - MIDDLE_PX)) < _CLEAR_PX:
        return ""
    return f"{'top' if thing.y < MIDDLE_PX else 'bottom'} {side_of(thing)}"


def _starting(corner: str) -> str:
    return f"the object that starts in the {corner}"


def _motions(scene: Scene, things: Sequence[Thing]) -> list[_Fact]:
    """Which way each moves, by colour (by side where two are alike) and by corner, and which corner's thing moves, or
    moves first; or which corner's thing appears or disappears. Only if nothing else happens.
    """
    camera = scene.pan != (0.0, 0.0) or scene.zoom or scene.roll
    legs = [len(thing.legs) for thing in things]
    if camera or max(legs, default=0) > 1:
        return []
    changing = [thing for thing in scene.things if thing.from_s > 0 or leaves(thing)]
    if changing:
        return _change(scene.things, changing)
    if not any(legs):
        return []
    ways = [direction_of(thing.legs[0]) if thing.legs else NOWHERE for thing in things]
    colours = Counter(thing.colour for thing in things)
    names = [
        f"the {thing.colour} object" if colours[thing.colour] == 1 else f"the object on the {side_of(thing)}"
        for thing in things
    ]
    out: list[_Fact] = [("named_direction", name, way, ways) for name, way in zip(names, ways, strict=True)]
    corners = _own_corners(things)
    if corners:
        out += [("named_direction", _starting(at), way, ways) for at, way in zip(corners, ways, strict=True)]
        out += _movers(things, corners)
    return out


def _change(things: Sequence[Thing], changing: Sequence[Thing]) -> list[_Fact]:
    """The corner of the only one that appears or disappears, and what is in that place at the start."""
    corners = _own_corners(things)
    if not corners or len(changing) != 1:
        return []
    (thing,) = changing
    before = thing.colour if leaves(thing) else NOTHING
    return [
        ("moving_corner", "the object that appears or disappears", corner_of(thing), corners),
        ("before", "", before, [*(one.colour for one in things if one.from_s <= 0), NOTHING]),
    ]


def _movers(things: Sequence[Thing], corners: Sequence[str]) -> list[_Fact]:
    """Where the only thing that moves is, or of two that move one after the other the first and the last."""
    moving = sorted(
        (thing.legs[0].start_s, thing.legs[0].end_s, at)
        for thing, at in zip(things, corners, strict=True)
        if thing.legs
    )
    if len(moving) == 1:
        return [("moving_corner", "the object that moves", moving[0][2], corners)]
    if len(moving) == 2 and moving[0][1] < moving[1][0]:
        return [
            ("moving_corner", f"the object that moves {when}", at, corners)
            for when, (_, _, at) in zip(("first", "last"), moving, strict=True)
        ]
    return []
