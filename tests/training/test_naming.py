import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from cope_training.naming import named_questions
from cope_training.question_types import TYPES
from cope_training.questions import Question
from cope_training.scenes import Leg, Scene, Thing
from cope_training.stories import invent

RED = Thing("red", "circle", 20, 30, 40)
BLUE = Thing("blue", "square", 20, 100, 90, legs=(Leg(1, 4, 0, -12),))


def scene(*things: Thing, **camera: float) -> Scene:
    return Scene("noise", 0, (100, 100, 100), 90, 0, things, **camera)  # type: ignore[arg-type]


def facts(questions: list[Question]) -> set[tuple[str, str, tuple[str, ...]]]:
    return {(question.type, question.answer, question.among) for question in questions}


def test_every_thing_is_asked_about() -> None:
    found = named_questions(scene(RED, BLUE), [], np.random.default_rng(0))
    assert facts(found) == {
        ("side", "left", ("left", "right")),
        ("side", "right", ("left", "right")),
        ("colour", "red", ("red", "blue")),
        ("colour", "blue", ("red", "blue")),
        ("contents", "red", ("red", "blue", "nothing")),
        ("contents", "blue", ("red", "blue", "nothing")),
        ("contents", "nothing", ("red", "blue", "nothing")),
        ("corner", "top left", ("top left", "bottom right")),
        ("corner", "bottom right", ("top left", "bottom right")),
        ("named_direction", "nowhere", ("nowhere", "up")),
        ("named_direction", "up", ("nowhere", "up")),
        ("moving_corner", "bottom right", ("top left", "bottom right")),
    }
    names = {"red", "left", "blue", "right"}
    for question in found:
        told = names & set(re.findall(r"\w+", question.text))
        red = question.answer in ("left", "nowhere", "red", "top left")
        if question.type in ("corner", "named_direction", "colour"):
            assert told and told <= ({"red", "left"} if red else {"blue", "right"}), question.text
        assert question.options == TYPES[question.type].options


def test_the_first_and_the_last_to_move_have_corners() -> None:
    early, late = replace(RED, legs=(Leg(0, 3, 9, 0),)), replace(BLUE, legs=(Leg(4, 7, 9, 0),))
    found = named_questions(scene(late, early), [], np.random.default_rng(0))
    told = {q.answer: q.text for q in found if q.type == "moving_corner"}
    assert "object that moves first" in told["top left"] and "object that moves last" in told["bottom right"]
    together = named_questions(scene(early, replace(late, legs=(Leg(2, 7, 9, 0),))), [], np.random.default_rng(0))
    assert "moving_corner" not in {q.type for q in together}


def test_a_thing_in_the_middle_or_two_in_a_corner_have_none() -> None:
    for other in (replace(BLUE, x=66), replace(BLUE, y=60), replace(BLUE, x=30, y=40)):
        found = named_questions(scene(RED, other), [], np.random.default_rng(0))
        assert not {"corner", "moving_corner"} & {q.type for q in found}
        assert "corner" not in " ".join(q.text for q in found)


def test_nothing_is_asked_twice() -> None:
    first = named_questions(scene(RED, BLUE), [], np.random.default_rng(0))
    assert named_questions(scene(RED, BLUE), first, np.random.default_rng(1)) == []
    assert len(named_questions(scene(RED, BLUE), first[:2], np.random.default_rng(1))) == len(first) - 2


def test_twins_are_told_by_their_side() -> None:
    twin = replace(BLUE, colour="red")
    found = named_questions(scene(RED, twin), [], np.random.default_rng(0))
    assert [(question.type, question.answer) for question in found][:2] == [
        ("named_direction", "nowhere"),
        ("named_direction", "up"),
    ]
    assert "the object on the left" in found[0].text.lower()
    assert "the object on the right" in found[1].text.lower()


@pytest.mark.parametrize(
    "seen",
    [
        scene(RED, replace(BLUE, legs=()), pan=(5.0, 0.0)),  # type: ignore[arg-type]
        scene(RED, replace(BLUE, until_s=3)),
        scene(RED, BLUE, replace(BLUE, colour="green", x=40, from_s=2)),
        scene(RED, replace(BLUE, legs=(Leg(0, 3, 5, 0), Leg(3, 6, 0, 5)))),
    ],
)
def test_motion_is_asked_about_only_where_each_thing_has_one(seen: Scene) -> None:
    assert "named_direction" not in {q.type for q in named_questions(seen, [], np.random.default_rng(0))}


def test_one_thing_needs_no_name() -> None:
    assert named_questions(scene(RED), [], np.random.default_rng(0)) == []


@pytest.mark.parametrize("change", [{"from_s": 1.0}, {"until_s": 3.0}])
def test_the_corner_of_a_change_is_asked_without_saying_which(change: dict[str, float]) -> None:
    found = named_questions(scene(RED, replace(BLUE, legs=(), **change)), [], np.random.default_rng(0))  # type: ignore[arg-type]
    (asked,) = [q for q in found if q.type == "moving_corner"]
    assert asked.answer == "bottom right" and "the object that appears or disappears" in asked.text.lower()
    (asked,) = [q for q in found if q.type == "before"]
    assert (asked.answer, asked.among) == (
        ("nothing", ("red", "nothing")) if "from_s" in change else ("blue", ("red", "blue", "nothing"))
    )
    assert asked not in named_questions(scene(RED, replace(BLUE, legs=(), **change)), [asked], np.random.default_rng(0))  # type: ignore[arg-type]


def test_training_sets_have_them_and_held_out_sets_do_not() -> None:
    def most(held_out: bool) -> int:
        stories = [invent(0, number, kinds=("who",), held_out=held_out) for number in range(20)]
        return max(Counter(q.type for q in story.questions)["named_direction"] for story in stories)

    assert most(held_out=False) == 6
    assert most(held_out=True) == 0
