"""Questions about videos in LLaVA-Video-178K's JSON: a list of records with `id`, `video` and `conversations`.

Our own data add `type`, `group`, `options` and `among` to a record; records from elsewhere have no such fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cope_training.files import read_json, write_json
from cope_training.question_types import TYPES
from cope_training.questions import Question

FILE_NAME = "annotations.json"
_MARK = "<image>"  # stands for the video in LLaVA's format


@dataclass(frozen=True, slots=True)
class Clip:
    """A video and what is asked about it.

    Attributes:
        path: the video.
        name: its path as the annotations spell it.
        questions: at least one.
    """

    path: Path
    name: str
    questions: tuple[Question, ...]


def records(name: str, questions: Iterable[Question]) -> list[dict[str, Any]]:
    """A clip's records, one per question."""
    return [
        {
            "id": f"{Path(name).stem}-{number}",
            "video": name,
            "data_source": "synthetic",
            "conversations": [
                {"from": "human", "value": f"{_MARK}\n{question.text}"},
                {"from": "gpt", "value": question.answer},
            ],
            "type": question.type,
            "group": TYPES[question.type].group,
            "options": list(question.options),
            "among": list(question.among),
        }
        for number, question in enumerate(questions)
    ]


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write an annotation file."""
    write_json(path, list(rows))


def read(data: Sequence[Path], skip: Callable[[str, str], None] | None = None) -> list[Clip]:
    """Read annotation files; clips come in the order of their first record.

    Args:
        data: folders that hold `annotations.json`, or JSON files; videos lie beside them.
        skip: told of each record that is left out, because it is not of the format: its name, and the reason. Without
            it such a record is an error.

    Raises:
        ValueError: a file is no list or is named twice, or there is not one question.
        OSError: a file cannot be read.
    """
    clips: dict[Path, tuple[str, list[Question]]] = {}
    seen: set[Path] = set()
    bad: list[tuple[str, str]] = []
    for source in data:
        path = source / FILE_NAME if source.is_dir() else source
        if path.resolve() in seen:  # each clip would have all of its questions twice
            raise ValueError(f"data names {source} twice")
        seen.add(path.resolve())
        rows = read_json(path)
        if not isinstance(rows, list):
            raise ValueError(f"{path}: not a list of records")
        for number, row in enumerate(rows):
            try:
                name, asked = _record(row)
            except ValueError as error:
                if skip is None:
                    raise ValueError(f"{path}: record {number}: {error}") from None
                bad.append((f"{path}: record {number}", str(error)))
                skip(*bad[-1])
                continue
            clips.setdefault(path.parent / name, (name, []))[1].extend(asked)
    if not clips:
        first = f"; the first of {len(bad)} bad records, {bad[0][0]}: {bad[0][1]}" if bad else ""
        raise ValueError(f"no question in {', '.join(map(str, data))}{first}")
    return [Clip(path, name, tuple(asked)) for path, (name, asked) in clips.items()]


def _record(row: Any) -> tuple[str, list[Question]]:
    """A record's video and its questions, at least one: every pair of turns is a question of its own.

    Raises:
        ValueError: says what the record lacks.
    """
    if not isinstance(row, dict):
        raise ValueError("not an object")
    name, turns = row.get("video"), row.get("conversations")
    if not isinstance(name, str) or not name:
        raise ValueError("no name of a video in video")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError("no list of turns in conversations")
    kind = row.get("type")
    if not isinstance(kind, str) or kind not in TYPES:
        kind = ""
    options, among = (_texts(row, field) if kind else () for field in ("options", "among"))
    asked = [
        Question(kind, _said(question, "human"), _said(answer, "gpt"), options, among)
        for question, answer in zip(turns[::2], turns[1::2], strict=False)
    ]
    if not asked:
        raise ValueError("no question with an answer in conversations")
    return name, asked


def _said(turn: Mapping[str, Any], who: str) -> str:
    """What a turn says, without the video's mark."""
    if turn.get("from", who) != who:
        raise ValueError(f"a turn in conversations is from {turn['from']!r} where one from {who} belongs")
    value = turn.get("value")
    text = value.replace(_MARK, "").strip() if isinstance(value, str) else ""
    if not text:
        raise ValueError(f"a turn from {who} in conversations has no text as its value")
    return text


def _texts(row: Mapping[str, Any], field: str) -> tuple[str, ...]:
    texts = row.get(field, [])
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{field} is no list of texts")
    return tuple(texts)
