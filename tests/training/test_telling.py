"""Sentences about scenes say what the scene holds, and mirror as it does."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cope_training.questions import flip_text
from cope_training.scenes import Leg, Scene, Thing
from cope_training.stories import KINDS, invent
from cope_training.telling import what_happens, what_is_there


def scene(*things: Thing, **camera: object) -> Scene:
    return Scene("clouds", 1, (100.0, 100.0, 100.0), 90.0, 0.0, things, **camera)  # type: ignore[arg-type]


RED, BLUE = Thing("red", "circle", 20, 30, 40), Thing("blue", "cross", 20, 90, 90)
LEFT = Leg(0.2, 3.0, -9.0, 0.0)
UP_LATE = Leg(4.0, 7.0, 0.0, -12.0)


@pytest.mark.parametrize(
    ("seen", "sentence"),
    [
        (scene(RED, BLUE), "blue bottom right, red top left"),
        (scene(RED), "red left"),
        (scene(RED, replace(BLUE, from_s=2.0)), "red left"),
        (scene(RED, replace(RED, x=100)), "red top left, red top right"),
    ],
)
def test_what_is_there(seen: Scene, sentence: str) -> None:
    assert what_is_there(seen) == sentence


@pytest.mark.parametrize(
    ("seen", "sentence"),
    [
        (scene(replace(RED, legs=(LEFT,))), "red moves left slowly early"),
        (scene(replace(RED, legs=(LEFT, UP_LATE))), "red moves left, then up"),
        (scene(replace(RED, legs=(LEFT,)), replace(BLUE, legs=(UP_LATE,))), "blue moves up late, red moves left early"),
        (scene(replace(RED, legs=(LEFT,)), BLUE), "blue stays, red moves left early"),
        (scene(RED, replace(RED, x=100, legs=(LEFT,))), "left stays, right moves left early"),
        (scene(RED, replace(BLUE, from_s=2.0)), "blue appears"),
        (scene(RED, replace(BLUE, until_s=2.0)), "blue disappears"),
        (scene(replace(RED, spin=-0.4)), "red rotates counterclockwise"),
        (scene(replace(RED, growth=0.1)), "red grows"),
        (scene(RED, BLUE, pan=(0.0, 8.0)), "the scene moves down"),
        (scene(RED, zoom=-0.1), "the camera zooms out"),
        (scene(RED, roll=0.2), "the picture turns clockwise"),
    ],
)
def test_what_happens(seen: Scene, sentence: str) -> None:
    assert what_happens(seen) == sentence


def mirrored(seen: Scene) -> Scene:
    """The scene in a mirror that exchanges left and right."""
    things = tuple(
        replace(
            thing,
            x=128 - thing.x,
            spin=-thing.spin,
            legs=tuple(replace(leg, vx=-leg.vx) for leg in thing.legs),
        )
        for thing in seen.things
    )
    return replace(seen, things=things, pan=(-seen.pan[0], seen.pan[1]), roll=-seen.roll)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mirrored_sentence_is_about_the_mirrored_scene(kind: str) -> None:
    for number in range(20):
        seen = invent(5, number, kinds=(kind,)).scene
        for tell in (what_is_there, what_happens):
            # Of two things of one colour the left one comes first, so their order may change.
            expected = sorted(tell(mirrored(seen)).split(", "))
            assert sorted(flip_text(tell(seen), x=True, y=False).split(", ")) == expected
