import itertools

import pytest

from cope_training.questions import TYPES, Question, flip, flip_text

FLIPS = list(itertools.product((False, True), repeat=2))


def test_a_mirror_exchanges_the_words_of_its_axis() -> None:
    text = "Does the object on the left move up or turn clockwise?"
    assert flip_text(text, x=True, y=False) == "Does the object on the right move up or turn counterclockwise?"
    assert flip_text(text, x=False, y=True) == "Does the object on the left move down or turn counterclockwise?"
    assert flip_text(text, x=True, y=True) == "Does the object on the right move down or turn clockwise?"


@pytest.mark.parametrize(("x", "y"), FLIPS)
def test_mirroring_twice_changes_nothing(x: bool, y: bool) -> None:
    for kind in TYPES.values():
        for text in (*kind.training, *kind.held_out, *kind.options):
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
