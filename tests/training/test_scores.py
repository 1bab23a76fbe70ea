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


def test_intervals_are_wilsons() -> None:
    assert scores.interval(67, 75) == (80.34, 94.5)
    assert scores.interval(0, 10) == (0.0, 27.75)
    assert scores.interval(10, 10) == (72.25, 100.0)


def test_margins_are_above_the_better_baseline() -> None:
    types = scores.by_type(
        [
            *[answered("left", "left")] * 4,  # chance 25
            *[answered("left", "left", "pan")] * 3,
            answered("left", "up", "pan"),
            answered("left", "left", "count"),
            answered("left", "up", "side"),
            answered("left", "left", "shape"),
        ]
    )
    zeroed = {"direction": 50.0, "pan": 0.0, "count": 100.0, "side": 100.0, "shape": 0.0}
    assert scores.margins(types, zeroed) == {
        "motion": (50 + 50) / 2,
        "colour_count_side": 50.0,
        "colour_count_side_zeroed": 100.0,
    }
    assert scores.margins(types, {}) == {}
