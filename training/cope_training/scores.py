"""The arithmetic of evaluation: answers to accuracies, by type and by group, with the baselines beside them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

from cope_training.question_types import GROUPS, TYPES
from cope_training.questions import Question

_Z = 1.96  # standard deviations on either side that hold 95% of a normal distribution
_WELL_POSED = ("colour", "count", "side")  # of the appearance types, those that a mark is set for


@dataclass(frozen=True, slots=True)
class Answered:
    """A question that a model has answered.

    Attributes:
        question: with the right answer.
        chosen: the likeliest of its options.
        exact: greedy decoding gives exactly the right answer, and then ends.
    """

    question: Question
    chosen: str
    exact: bool

    @property
    def right(self) -> bool:
        """The chosen option is the right one."""
        return self.chosen == self.question.answer


def chance(questions: Sequence[Question]) -> float:
    """Expected accuracy of choosing among the options blindly."""
    return _mean(1 / len(question.options) for question in questions)


def majority(questions: Sequence[Question]) -> float:
    """Accuracy of always giving the answer that is right most often."""
    return max(Counter(question.answer for question in questions).values()) / len(questions)


def known(questions: Sequence[Question]) -> float | None:
    """Expected accuracy of who knows a clip's answers but not which thing is asked about; None where that is no help.

    One of `among` is chosen blindly; an answer that two things share is twice as likely.
    """
    if not all(question.among for question in questions):
        return None
    return _mean(question.among.count(question.answer) / len(question.among) for question in questions)


def interval(right: int, asked: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share, percent."""
    share, z2 = right / asked, _Z * _Z
    middle = (share + z2 / (2 * asked)) / (1 + z2 / asked)
    half = _Z / (1 + z2 / asked) * sqrt(share * (1 - share) / asked + z2 / (4 * asked**2))
    return _percent(middle - half), _percent(middle + half)


def by_type(answered: Iterable[Answered]) -> dict[str, dict[str, Any]]:
    """Accuracies and baselines per question type, in percent, in the order of `question_types.TYPES`."""
    kinds: dict[str, list[Answered]] = defaultdict(list)
    for one in answered:
        kinds[one.question.type].append(one)
    out = {}
    for name in TYPES:
        if name not in kinds:
            continue
        own = kinds[name]
        questions = [one.question for one in own]
        object_unknown = known(questions)
        out[name] = {
            "group": TYPES[name].group,
            "questions": len(own),
            "acc": _percent(_mean(one.right for one in own)),
            "ci95": interval(sum(one.right for one in own), len(own)),
            "exact": _percent(_mean(one.exact for one in own)),
            "chance": _percent(chance(questions)),
            "majority": _percent(majority(questions)),
            "object_unknown": None if object_unknown is None else _percent(object_unknown),
        }
    return out


def by_group(types: dict[str, dict[str, Any]], field: str = "acc") -> dict[str, float | None]:
    """The mean over a group's types, each type weighing the same; None for a group without questions."""
    out: dict[str, float | None] = {}
    for group in GROUPS:
        values = [row[field] for row in types.values() if row["group"] == group]
        out[group] = round(sum(values) / len(values), 2) if values else None
    return out


def margins(types: dict[str, dict[str, Any]], zeroed: dict[str, float]) -> dict[str, float]:
    """What the delta-tokens are worth.

    Args:
        types: of the model as it is, see `by_type`.
        zeroed: accuracy per type with all delta-tokens zero.

    Returns:
        `motion`: points above the better of chance and `zeroed`, mean over the types of motion; `colour_count_side`,
        the mean accuracy of those, and `colour_count_side_zeroed`. What has no type to be taken from is left out.
    """
    motion = [
        row["acc"] - max(row["chance"], zeroed[name])
        for name, row in types.items()
        if row["group"] == "motion" and name in zeroed
    ]
    seen = [name for name in _WELL_POSED if name in types and name in zeroed]
    out = {"motion": round(_mean(motion), 2)} if motion else {}
    if seen:
        out["colour_count_side"] = round(_mean(types[name]["acc"] for name in seen), 2)
        out["colour_count_side_zeroed"] = round(_mean(zeroed[name] for name in seen), 2)
    return out


def recall(ranks: Sequence[float], at: int) -> float:
    """Share of queries, percent, whose match is among the first `at`; ranks count from 1."""
    return _percent(_mean(rank <= at for rank in ranks))


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def _percent(share: float) -> float:
    return round(100 * share, 2)
