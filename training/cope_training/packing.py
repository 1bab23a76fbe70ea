"""Several questions about one video in one sequence: a tree of segments, each of which sees only its ancestors.

The video is encoded once. A question sees the video and itself; when options are scored, each sees its question.
To the language model every branch looks as if it stood alone: positions go on from the parent's end.
"""

# L = length of a packed sequence, n = number of targets.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cope_model.prompts import insert_instructions, time_instruction

Ints = npt.NDArray[np.int64]


@dataclass
class Tree:
    """A packed sequence in the making.

    Attributes:
        ids: token ids so far.
        positions: of each token, as the language model counts them.
        segments: which segment each token belongs to.
        ancestors: for each segment, itself and those that it may see.
        ends: for each segment, the index of its last token.
        at, token, owner: targets: the token that must be predicted at an index, and whose it is.
    """

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    ancestors: list[frozenset[int]] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    at: list[int] = field(default_factory=list)
    token: list[int] = field(default_factory=list)
    owner: list[int] = field(default_factory=list)

    def add(self, ids: Sequence[int], parent: int | None = None, owner: int | None = None) -> int:
        """Append a segment.

        Args:
            ids: its tokens, at least one.
            parent: the segment that it continues; None for the root.
            owner: if given, all its tokens are targets of this owner.

        Returns:
            The segment's number.
        """
        number = len(self.ancestors)
        before = frozenset() if parent is None else self.ancestors[parent]
        previous = -1 if parent is None else self.ends[parent]
        start = 0 if parent is None else self.positions[previous] + 1
        for offset, token in enumerate(ids):
            if owner is not None:
                self.at.append(previous)
                self.token.append(token)
                self.owner.append(owner)
            previous = len(self.ids)
            self.ids.append(token)
            self.positions.append(start + offset)
            self.segments.append(number)
        self.ancestors.append(before | {number})
        self.ends.append(previous)
        return number

    def mask(self) -> npt.NDArray[np.bool_]:
        """Who sees whom: bool (L, L), row = who looks."""
        count = len(self.ancestors)
        sees = np.zeros((count, count), bool)
        for number, seen in enumerate(self.ancestors):
            sees[number, list(seen)] = True
        segments = np.array(self.segments)
        length = len(segments)
        allowed: npt.NDArray[np.bool_] = sees[segments[:, None], segments[None, :]] & np.tri(length, dtype=bool)
        return allowed


class Prompts:
    """A model's chat template applied to questions about one video.

    Args:
        tokenizer: the model's.
        video_token: id of the placeholder that stands for a video.
        times: whether the model is told a video's times (`CoPEConfig.add_time_instruction`).
    """

    def __init__(self, tokenizer: Any, video_token: int, *, times: bool = False) -> None:
        self._tokenizer = tokenizer
        self._video = video_token
        self._times = times
        self._known: dict[str, tuple[list[int], list[int]]] = {}

    def instruction(self, seconds: float, timestamps_s: Sequence[float]) -> str | None:
        """What the model is told about a video's times; None if it is told nothing. See `prompts.time_instruction`."""
        return time_instruction(seconds, timestamps_s) if self._times else None

    def question(self, text: str, instruction: str | None = None) -> tuple[list[int], list[int]]:
        """Tokens before the video's placeholder, and those after it up to where the answer begins.

        Args:
            text: the question.
            instruction: of `instruction`; it stands between the video and the question.

        Raises:
            ValueError: the chat template has no place for a video.
        """
        if text not in self._known:
            message = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": text}]}
            encoded = self._tokenizer.apply_chat_template(
                [message], add_generation_prompt=True, tokenize=True, return_dict=True
            )
            ids = list(encoded["input_ids"])
            if ids.count(self._video) != 1:
                raise ValueError("the model's chat template does not put one placeholder where a message has a video")
            place = ids.index(self._video)
            self._known[text] = ids[:place], ids[place + 1 :]
        before, after = self._known[text]
        return (before, after) if instruction is None else (before, self._told(after, instruction))

    def answer(self, text: str) -> list[int]:
        """Tokens of an answer, the end of the turn included."""
        return [*self._tokenizer(text, add_special_tokens=False)["input_ids"], int(self._tokenizer.eos_token_id)]

    def root(self, tokens: int, text: str, instruction: str | None = None) -> list[int]:
        """What all questions share: the template's head, a placeholder for every visual token, the instruction."""
        return [*self.question(text)[0], *([self._video] * tokens), *self.told(instruction)]

    def branch(self, text: str, instruction: str | None = None) -> list[int]:
        """What follows `root` up to where the answer begins."""
        return self.question(text, instruction)[1][len(self.told(instruction)) :]

    def told(self, instruction: str | None) -> list[int]:
        """Tokens of an instruction."""
        return [] if instruction is None else self._told([], instruction)

    def _told(self, after: Sequence[int], instruction: str) -> list[int]:
        """Tokens behind a video, with the instruction before them, put there as the server does."""
        return insert_instructions([self._video, *after], self._video, [instruction], self._encode)[1:]

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))
