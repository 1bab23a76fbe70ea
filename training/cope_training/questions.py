"""A question and its wordings, and what mirroring a picture does to words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from cope_training.question_types import TYPES


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a clip with its answer.

    Attributes:
        type: a key of `TYPES`; empty for questions from elsewhere.
        text: the wording.
        answer: what is right, one of `options`.
        options: what a scorer may choose from; empty for free text.
        among: what one would choose from who knows all that happens in the clip, but not to which thing.
    """

    type: str
    text: str
    answer: str
    options: tuple[str, ...] = ()
    among: tuple[str, ...] = ()


KINDS = 2 * len(TYPES) + 1  # see `kind_of`
_NUMBERS = {name: number for number, name in enumerate(TYPES)}
WORD_KINDS = (*(bool(own.options) for own in TYPES.values() for _ in range(2)), False)  # of one word, by kind


def kind_of(question: Question) -> int:
    """Number of a question's kind, below `KINDS`: its type, and whether several things could be meant; types that we do
    not know are one kind, the last. What is easy about a single thing can be hard about one of several.
    """
    if question.type not in _NUMBERS:
        return KINDS - 1
    return 2 * _NUMBERS[question.type] + (len(question.among) > 1)


def wording(template: str, fields: Mapping[str, str]) -> str:
    """Fill a template; `{The}` is `{the}` at the start of a sentence."""
    capital = {name[0].upper() + name[1:]: value[0].upper() + value[1:] for name, value in fields.items()}
    return template.format(**fields, **capital)


def fields_of(question: Question) -> dict[str, str] | None:
    """What fills the fields of a question's wording; None if it has none of a training set's wordings."""
    for form in _FORMS.get(question.type, ()):
        found = form.fullmatch(question.text)
        if found is not None:
            return {name.lower(): value[0].lower() + value[1:] for name, value in found.groupdict().items()}
    return None


def reword(question: Question, random: np.random.Generator) -> Question:
    """The same question in another of the wordings that training may see; as it is where none fits."""
    fields = fields_of(question)
    if fields is None:
        return question
    templates = (*TYPES[question.type].training, *TYPES[question.type].more)
    return replace(question, text=wording(templates[int(random.integers(len(templates)))], fields))


def _form(template: str) -> re.Pattern[str]:
    """Matches what `wording` makes of a template, with a group for each field."""
    parts = re.split(r"\{(\w+)\}", template)
    return re.compile("".join(f"(?P<{part}>.+?)" if n % 2 else re.escape(part) for n, part in enumerate(parts)))


_FORMS = {name: tuple(_form(template) for template in own.training) for name, own in TYPES.items()}

_MIRROR_X = {"left": "right"}
_MIRROR_Y = {"up": "down", "top": "bottom", "above": "below", "upper": "lower"}
_MIRROR_ONE = {"clockwise": "counterclockwise"}


def flip_text(text: str, *, x: bool, y: bool) -> str:
    """The same statement about the mirrored picture.

    Args:
        text: question or answer.
        x: left and right are exchanged.
        y: top and bottom are exchanged.
    """
    pairs: dict[str, str] = {}
    for words, applies in ((_MIRROR_X, x), (_MIRROR_Y, y), (_MIRROR_ONE, x != y)):
        if applies:
            pairs |= words | {other: word for word, other in words.items()}
    if not pairs:
        return text
    return re.sub(r"\b(" + "|".join(pairs) + r")\b", lambda found: pairs[found[0]], text)


def flip(question: Question, *, x: bool, y: bool) -> Question:
    """The question about the mirrored clip; see `flip_text`."""
    return replace(
        question,
        text=flip_text(question.text, x=x, y=y),
        answer=flip_text(question.answer, x=x, y=y),
        options=tuple(flip_text(option, x=x, y=y) for option in question.options),
        among=tuple(flip_text(option, x=x, y=y) for option in question.among),
    )
