import itertools

import numpy as np
import pytest

from cope_training.question_types import TYPES
from cope_training.questions import Question, flip, flip_text, reword, wording

FLIPS = list(itertools.product((False, True), repeat=2))


def test_a_mirror_exchanges_the_words_of_its_axis() -> None:
    text = "Does the object on the left move up or turn clockwise?"
    assert flip_text(text, x=True, y=False) == "Does the object on the right move up or turn counterclockwise?"
    assert flip_text(text, x=False, y=True) == "Does the object on the left move down or turn counterclockwise?"
    assert flip_text(text, x=True, y=True) == "Does the object on the right move down or turn clockwise?"


@pytest.mark.parametrize(("x", "y"), FLIPS)
def test_mirroring_twice_changes_nothing(x: bool, y: bool) -> None:
    for kind in TYPES.values():
        for text in (*kind.training, *kind.more, *kind.held_out, *kind.options):
            assert flip_text(flip_text(text, x=x, y=y), x=x, y=y) == text


def test_both_mirrors_are_one_after_the_other() -> None:
    for kind in TYPES.values():
        for option in kind.options:
            one_by_one = flip_text(flip_text(option, x=True, y=False), x=False, y=True)
            assert flip_text(option, x=True, y=True) == one_by_one


@pytest.mark.parametrize(("x", "y"), FLIPS)
def test_mirrored_answers_stay_among_the_options_of_their_type(x: bool, y: bool) -> None:
    for name, kind in TYPES.items():
        for answer in kind.options:
            mirrored = flip(Question(name, kind.training[0], answer, kind.options, (answer,)), x=x, y=y)
            assert mirrored.answer in mirrored.options
            assert mirrored.among == (mirrored.answer,)
            assert sorted(mirrored.options) == sorted(kind.options)


FIELDS = {"the": "the object that starts on the left", "a": "the red one", "b": "the blue one"}


@pytest.mark.parametrize("name", [name for name, kind in TYPES.items() if kind.more])
def test_every_wording_of_the_data_becomes_every_other_that_training_may_see(name: str) -> None:
    kind = TYPES[name]
    wanted = {wording(template, FIELDS) for template in (*kind.training, *kind.more)}
    random = np.random.default_rng(0)
    for template in kind.training:
        question = Question(name, wording(template, FIELDS), kind.options[0], kind.options)
        made = [reword(question, random) for _ in range(200)]
        assert {one.text for one in made} == wanted
        assert {(one.type, one.answer, one.options) for one in made} == {(name, question.answer, question.options)}


def test_a_wording_or_a_type_that_nobody_knows_stays() -> None:
    random = np.random.default_rng(0)
    for question in (Question("colour", "Red or blue?", "red"), Question("", "What is this?", "a cat")):
        assert reword(question, random) == question
