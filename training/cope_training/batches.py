"""Batches of clips with questions, made on the spot: batch number n is the same in every run, so runs can resume."""

# B clips, L tokens of the longest, K keyframes, P P-frames, S model side (px), n targets.

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cope_model.presets import Geometry
from cope_training.packing import Prompts, Tree
from cope_training.primitives import CachedVideo
from cope_training.qa import Clip
from cope_training.question_types import GROUPS, TYPES
from cope_training.questions import KINDS, Question, flip, kind_of, reword
from cope_training.views import Shown, View, show


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Clips and their questions as tensors.

    Attributes:
        keyframes: uint8 (K, S, S, 3), all clips' together, in order.
        motion, residual: int16 (P, ...), likewise.
        kept: float (P, 2), factors of motion and residual tokens.
        layouts: of every GOP.
        ids, positions: int64 (B, L).
        mask: bool (B, 1, L, L), who sees whom.
        visual: bool (B, L), placeholders that visual tokens take the places of.
        row, at, token: int64 (n,), targets: clip, index, token.
        owner: int64 (n,), whose token: numbers count through the batch.
        weight: float (answers,), how much each answer counts in the loss, by owner.
        kind: int64 (answers,), `questions.kind_of` each, by owner.
    """

    keyframes: Tensor
    motion: Tensor
    residual: Tensor
    kept: Tensor
    layouts: list[tuple[int, ...]]
    ids: Tensor
    positions: Tensor
    mask: Tensor
    visual: Tensor
    row: Tensor
    at: Tensor
    token: Tensor
    owner: Tensor
    weight: Tensor
    kind: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        moved: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in moved.items():
            if isinstance(value, Tensor):
                moved[name] = value.to(device, non_blocking=True)
        return Batch(**moved)

    def __len__(self) -> int:
        return len(self.ids)


def collate(
    trees: Sequence[Tree],
    shown: Sequence[Shown],
    video_token: int,
    weights: Sequence[float] | None = None,
    kinds: Sequence[int] | None = None,
) -> Batch:
    """Pad and stack; unless told otherwise all answers weigh 1 and are of the kind that we do not know."""
    length = max(len(tree.ids) for tree in trees)
    shape = (len(trees), length)
    ids, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    visual = np.zeros(shape, bool)
    mask = np.zeros((len(trees), 1, length, length), bool)
    mask[:, :, np.arange(length), np.arange(length)] = True  # padding sees itself: a row of nothing would be NaN
    row: list[int] = []
    owner: list[int] = []
    owners = 0
    for number, tree in enumerate(trees):
        own = len(tree.ids)
        ids[number, :own], positions[number, :own] = tree.ids, tree.positions
        visual[number, :own] = np.array(tree.ids) == video_token
        mask[number, 0, :own, :own] = tree.mask()
        row += [number] * len(tree.at)
        owner += [owners + one for one in tree.owner]
        owners += max(tree.owner, default=-1) + 1
    kept = [gop.kept for gop in shown for _ in range(len(gop.motion))]
    return Batch(
        keyframes=torch.from_numpy(np.concatenate([gop.keyframes for gop in shown])),
        motion=torch.from_numpy(np.concatenate([gop.motion for gop in shown])),
        residual=torch.from_numpy(np.concatenate([gop.residual for gop in shown])),
        kept=torch.tensor(kept, dtype=torch.float32).reshape(-1, 2),
        layouts=[gop.layout for gop in shown],
        ids=torch.from_numpy(ids),
        positions=torch.from_numpy(positions),
        mask=torch.from_numpy(mask),
        visual=torch.from_numpy(visual),
        row=torch.tensor(row, dtype=torch.int64),
        at=torch.tensor([at for tree in trees for at in tree.at], dtype=torch.int64),
        token=torch.tensor([token for tree in trees for token in tree.token], dtype=torch.int64),
        owner=torch.tensor(owner, dtype=torch.int64),
        weight=torch.tensor(weights if weights is not None else [1.0] * owners, dtype=torch.float32),
        kind=torch.tensor(kinds if kinds is not None else [KINDS - 1] * owners, dtype=torch.int64),
    )


@dataclass(frozen=True, slots=True)
class Mixture:
    """How training looks at clips.

    Attributes:
        keyframes: numbers of keyframes per GOP to choose from, each equally likely; all clips of a batch have the
            same, since clips of different lengths would be padded to the longest.
        questions: at most that many of a clip at once; those that a picture answers come last, sentences before words.
        zeroed: share of clips whose delta-tokens are all zero.
        without: share of clips that are shown without P slots. Of both kinds only `appearance` is asked.
        flips: mirror clips and answers at random; only for questions whose type we know.
        reword: put other wordings in place of the data's each time that a clip is shown; likewise.
        balance: let every question type weigh the same in the loss, however rare it is; types that we do not know are
            one type together. Of our own data, two in three answers would otherwise be about what a picture shows.
        groups: ask only questions of these groups (`question_types.GROUPS`) or types; a type with `+` behind it only
            where several things could be meant; none given asks all.
    """

    keyframes: tuple[int, ...] = (4,)
    questions: int = 8
    zeroed: float = 0.12
    without: float = 0.05
    flips: bool = True
    reword: bool = True
    balance: bool = True
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.keyframes or any(not 1 <= count <= 8 for count in self.keyframes):
            raise ValueError(f"keyframes must be numbers from 1 to 8, not {self.keyframes}")
        if self.questions < 1:
            raise ValueError(f"questions must be at least 1, not {self.questions}")
        if min(self.zeroed, self.without) < 0 or self.zeroed + self.without > 1:
            raise ValueError(f"zeroed ({self.zeroed}) and without ({self.without}) must be shares of the clips")
        for group in self.groups:
            if group.removesuffix("+") not in TYPES and group not in GROUPS:
                known = ", ".join((*GROUPS, *TYPES))
                raise ValueError(f"no group or type of questions is called {group!r}: there are {known}")


class QuestionBatches(torch.utils.data.Dataset[Batch]):
    """Training batches of clips with questions; item n is batch n.

    Args:
        clips, videos: of the same length; clips without a video are left out.
        prompts: the chat template.
        geometry: the model's token account.
        video_token: placeholder.
        mixture: how clips are shown.
        size: clips per batch and process.
        seed: of everything that is drawn.
        rank, world: this process and the number of processes, which share a batch.

    Raises:
        ValueError: no clip has a question of the mixture's groups.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        videos: Sequence[CachedVideo | None],
        *,
        prompts: Prompts,
        geometry: Geometry,
        video_token: int,
        mixture: Mixture,
        size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._pairs = [
            (asked, video)
            for clip, video in zip(clips, videos, strict=True)
            if video is not None and (asked := _asking(clip, mixture.groups)).questions
        ]
        if not self._pairs:
            raise ValueError(f"no clip has questions of {', '.join(mixture.groups) or 'any group'}")
        self._prompts, self._geometry, self._video_token = prompts, geometry, video_token
        self._mixture, self._size, self._seed = mixture, size, seed
        self._rank, self._world = rank, world
        self._weights = type_weights([clip for clip, _ in self._pairs]) if mixture.balance else {}

    def __getitem__(self, number: int) -> Batch:
        trees: list[Tree] = []
        weights: list[float] = []
        kinds: list[int] = []
        shown: list[Shown] = []
        counts = self._mixture.keyframes
        keyframes = counts[int(np.random.default_rng([self._seed, 7, number]).integers(len(counts)))]
        for place in range(self._rank, self._size * self._world, self._world):
            which = number * self._size * self._world + place
            epoch, within = divmod(which, len(self._pairs))
            order = np.random.default_rng([self._seed, epoch]).permutation(len(self._pairs))
            clip, video = self._pairs[int(order[within])]
            view, questions = self._draw(clip, keyframes, np.random.default_rng([self._seed, 1, which]))
            gops = [show(gop, view) for gop in video.gops()]
            shown += gops
            told = instruction_of(self._prompts, video, gops)
            trees.append(pack(self._prompts, questions, tokens_of(gops, self._geometry), told))
            weights += [self._weights.get(question.type, 1.0) for question in questions]
            kinds += map(kind_of, questions)
        return collate(trees, shown, self._video_token, weights, kinds)

    def _draw(self, clip: Clip, keyframes: int, random: np.random.Generator) -> tuple[View, list[Question]]:
        mixture = self._mixture
        ours = all(question.type for question in clip.questions)
        fate = random.random()
        flip_x, flip_y = (bool(random.integers(2)) and mixture.flips and ours for _ in range(2))
        questions = [clip.questions[i] for i in random.permutation(len(clip.questions))]
        questions.sort(key=_turn)
        deltas: Any = "on"
        # Without delta-tokens nobody can answer what is about motion, and asking would only teach the model to guess.
        # Of others' questions nothing is known, so their clips keep their delta-tokens.
        if ours and fate < mixture.zeroed + mixture.without:
            deltas = "zeroed" if fate < mixture.zeroed else "none"
            questions = [question for question in questions if _is_appearance(question)] or questions
        view = View(keyframes, deltas, flip_x, flip_y)
        chosen = questions[: mixture.questions]
        if mixture.reword:  # before mirroring: "right or left" is no wording that we know
            chosen = [reword(question, random) for question in chosen]
        return view, [flip(question, x=flip_x, y=flip_y) for question in chosen]


def type_weights(clips: Sequence[Clip]) -> dict[str, float]:
    """What an answer of each question type weighs: all types the same, with a mean of 1; a sentence, as free answers of
    our own data are, weighs 1, since it says as much as several answers of one word."""
    counts = Counter(question.type for clip in clips for question in clip.questions if not _is_sentence(question))
    return {name: counts.total() / (len(counts) * count) for name, count in counts.items()}


def _asking(clip: Clip, groups: Sequence[str]) -> Clip:
    """The clip with the questions of these groups."""
    if not groups:
        return clip
    return replace(clip, questions=tuple(one for one in clip.questions if _names(one) & {*groups}))


def _names(question: Question) -> set[str]:
    """What `Mixture.groups` may call a question."""
    if question.type not in TYPES:
        return set()
    several = {f"{question.type}+"} if len(question.among) > 1 else set()
    return {question.type, TYPES[question.type].group, *several}


def _is_sentence(question: Question) -> bool:
    return question.type in TYPES and not TYPES[question.type].options


def _turn(question: Question) -> int:
    """Which questions come first where there are more than a clip may have."""
    return 2 * _is_appearance(question) + (not _is_sentence(question))


def _is_appearance(question: Question) -> bool:
    return question.type in TYPES and TYPES[question.type].group == "appearance"


def tokens_of(shown: Sequence[Shown], geometry: Geometry) -> int:
    """Visual tokens of a clip."""
    return sum(geometry.tokens(len(gop.keyframes), len(gop.motion)) for gop in shown)


def instruction_of(prompts: Prompts, video: CachedVideo, shown: Sequence[Shown]) -> str | None:
    """What a model is told about the times of what it is shown of a video, if it is told them."""
    return prompts.instruction(video.seconds, [time for gop in shown for time in gop.timestamps_s])


def pack(
    prompts: Prompts,
    questions: Sequence[Question],
    tokens: int,
    instruction: str | None = None,
    *,
    options: bool = False,
) -> Tree:
    """A clip's questions with their answers as targets.

    Args:
        prompts: the chat template.
        questions: at least one.
        tokens: visual tokens of the clip.
        instruction: of `instruction_of`.
        options: make every option a branch and a target of its own, instead of the answer alone.
    """
    tree = Tree()
    root = tree.add(prompts.root(tokens, questions[0].text, instruction))
    owners = 0
    for question in questions:
        branch = tree.add(prompts.branch(question.text, instruction), root)
        for answer in question.options or (question.answer,) if options else (question.answer,):
            tree.add(prompts.answer(answer), branch, owners)
            owners += 1
    return tree
