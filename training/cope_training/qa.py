"""Questions about videos in LLaVA-Video-178K's JSON: a list of records with `id`, `video` and `conversations`.

Our own data add `type`, `group`, `options` and `among` to a record; records from elsewhere have no such fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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


def read(data: Sequence[Path]) -> list[Clip]:
    """Read annotation files; clips come in the order of their first record.

    Args:
        data: folders that hold `annotations.json`, or JSON files; videos lie beside them.

    Raises:
        ValueError: a file is no such list, or holds not one question.
        OSError: a file cannot be read.
    """
    clips: dict[Path, tuple[str, list[Question]]] = {}
    for source in data:
        path = source / FILE_NAME if source.is_dir() else source
        rows = read_json(path)
        if not isinstance(rows, list):
            raise ValueError(f"{path}: not a list of records")
        for number, row in enumerate(rows):
            try:
                name, asked = str(row["video"]), _questions(row)
            except (KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{path}: record {number} lacks {error}") from None
            clips.setdefault(path.parent / name, (name, []))[1].extend(asked)
    out = [Clip(path, name, tuple(asked)) for path, (name, asked) in clips.items() if asked]
    if not out:
        raise ValueError(f"no question in {', '.join(map(str, data))}")
    return out


def _questions(row: Mapping[str, Any]) -> list[Question]:
    """All turns of a record; every pair of turns is a question of its own."""
    turns = row["conversations"]
    kind = str(row.get("type", ""))
    ours = kind in TYPES
    return [
        Question(
            type=kind if ours else "",
            text=asked["value"].replace(_MARK, "").strip(),
            answer=answer["value"].strip(),
            options=tuple(row.get("options", ())) if ours else (),
            among=tuple(row.get("among", ())) if ours else (),
        )
        for asked, answer in zip(turns[::2], turns[1::2], strict=False)
    ]
