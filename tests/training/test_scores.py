import pytest

from cope_training import scores
from cope_training.questions import Question
from cope_training.scores import Answered

OPTIONS = ("left", "right", "up", "down")


def answered(answer: str, chosen: str, type_: str = "direction", among: tuple[str, ...] = ()) -> Answered:
    return Answered(Question(type_, "?", answer, OPTIONS, among), chosen, exact=chosen == answer == "left")


def test_accuracies_and_baselines_of_a_type() -> None:
    row = scores.by_type(
        [answered("left", "left"), answered("left", "up"), answered("left", "left"), answered("up", "up")]
    )["direction"]
    assert (row["questions"], row["acc"], row["exact"]) == (4, 75.0, 50.0)
    assert (row["chance"], row["majority"], row["object_unknown"]) == (25.0, 75.0, None)


def test_who_knows_the_answers_but_not_the_object_chooses_among_them() -> None:
    two = Question("named_direction", "?", "left", OPTIONS, ("left", "up"))
    same = Question("named_direction", "?", "left", OPTIONS, ("left", "left", "up"))
    assert scores.known([two]) == 0.5
    assert scores.known([two, same]) == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_group_means_weigh_every_type_the_same() -> None:
    types = scores.by_type(
        [*[answered("left", "left")] * 9, answered("left", "up", "pan"), answered("left", "left", "count")]
    )
    assert scores.by_group(types) == {"appearance": 100.0, "motion": 50.0, "binding": None}


def test_recall() -> None:
    assert [scores.recall([1, 2, 2.5, 7], at) for at in (1, 2, 5)] == [25.0, 50.0, 75.0]
