"""Whole sentences about a scene: what is there at the start, and what happens.

They are trained on and never scored. An answer of one word says little about which thing it is about; a sentence ties
a colour to its place and to its motion word by word, and every colour that has been said asks for the next word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from cope_training.scenes import DIRECTIONS, REFERENCE_PX, Leg, Scene, Thing

MIDDLE_PX = REFERENCE_PX / 2
_MIDDLE_S = 3.6
_SLOW, _FAST = 10.0, 20.0  # reference pixels per second
_NEVER = 1e8  # seconds; a thing that is never gone has more


def what_is_there(scene: Scene) -> str:
    """The things of the first picture with their places, by colour; a single one, which may lie in the middle of the
    height, with its side alone. Nothing in the order tells places, so a mirrored sentence is about the mirrored scene.
    """
    things = [thing for thing in scene.things if thing.from_s <= 0]
    return ", ".join(f"{thing.colour} {_place(thing, len(things))}" for thing in _ordered(things))


def what_happens(scene: Scene) -> str:
    """All that moves or changes. Where several things are and the camera rests, also what stays, by colour."""
    camera = _camera(scene)
    if camera:
        return camera
    changes = [(thing, _change(thing, alone=len(scene.things) == 1)) for thing in _ordered(scene.things)]
    appearing = any(thing.from_s > 0 or leaves(thing) for thing in scene.things)
    names = Counter(thing.colour for thing in scene.things)
    told = [
        f"{thing.colour if names[thing.colour] == 1 else side_of(thing)} {change or 'stays'}"
        for thing, change in changes
        if change or not appearing
    ]
    return ", ".join(told)


def _ordered(things: Sequence[Thing]) -> list[Thing]:
    return sorted(things, key=lambda thing: (thing.colour, thing.x))


def leaves(thing: Thing) -> bool:
    """Whether a thing disappears."""
    return thing.until_s < _NEVER


def side_of(thing: Thing) -> str:
    """Half of the picture that a thing is in at the start."""
    return "left" if thing.x < MIDDLE_PX else "right"


def _place(thing: Thing, things: int) -> str:
    height = "" if things == 1 else "top " if thing.y < MIDDLE_PX else "bottom "
    return f"{height}{side_of(thing)}"


def _camera(scene: Scene) -> str:
    if scene.pan != (0.0, 0.0):
        return f"the scene moves {_direction(*scene.pan)}"
    if scene.zoom:
        return f"the camera zooms {'in' if scene.zoom > 0 else 'out'}"
    if scene.roll:
        return f"the picture turns {_sense(scene.roll)}"
    return ""


def _change(thing: Thing, *, alone: bool) -> str:
    if thing.from_s > 0:
        return "appears"
    if leaves(thing):
        return "disappears"
    if thing.spin:
        return f"rotates {_sense(thing.spin)}"
    if thing.growth:
        return "grows" if thing.growth > 0 else "shrinks"
    if not thing.legs:
        return ""
    ways = ", then ".join(direction_of(leg) for leg in thing.legs)
    return f"moves {ways}" + ("" if len(thing.legs) > 1 else _pace(thing.legs[0]) * alone + _time(thing.legs[0]))


def _pace(leg: Leg) -> str:
    speed = max(abs(leg.vx), abs(leg.vy))
    return " slowly" if speed <= _SLOW else " fast" if speed >= _FAST else ""


def _time(leg: Leg) -> str:
    return " early" if leg.end_s <= _MIDDLE_S else " late" if leg.start_s >= _MIDDLE_S else ""


def direction_of(leg: Leg) -> str:
    """The direction that a leg is closest to."""
    return _direction(leg.vx, leg.vy)


def _direction(vx: float, vy: float) -> str:
    return max(DIRECTIONS, key=lambda name: DIRECTIONS[name][0] * vx + DIRECTIONS[name][1] * vy)


def _sense(rate: float) -> str:
    return "clockwise" if rate > 0 else "counterclockwise"
