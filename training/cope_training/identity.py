"""What a run was begun with, in short values to keep in its state: the model's weights and the data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import astuple

import torch
from torch import Tensor, nn

from cope_training.primitives import CachedVideo
from cope_training.qa import Clip

_WHOLE_NUMBERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


def of_model(model: nn.Module) -> str:
    """A digest of all weights, whatever directory they were read from."""
    digest = hashlib.blake2b(digest_size=6)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {_checksum(tensor)}\n".encode())
    return digest.hexdigest()


def _checksum(tensor: Tensor) -> int:
    """A sum of the bits as whole numbers: unlike one of floats it is the same in any order."""
    bits = tensor.detach().contiguous().flatten().view(_WHOLE_NUMBERS[tensor.element_size()])
    return int(bits.sum(dtype=torch.int64))


def of_data(clips: Sequence[Clip], videos: Sequence[CachedVideo | None]) -> str:
    """How many questions about how many clips, and a digest of the questions and of how the videos are cut.

    Args:
        clips: what is asked. Where the videos lie does not count: a data set may move.
        videos: theirs; None where one is not used.
    """
    digest = hashlib.blake2b(digest_size=6)
    for clip, video in zip(clips, videos, strict=True):
        cut = None if video is None else (video.codec, video.mode, video.layouts, clip.path.stat().st_size)
        digest.update(repr((clip.name, cut, *map(astuple, clip.questions))).encode())
    questions = sum(len(clip.questions) for clip in clips)
    return f"{questions} questions about {len(clips)} clips ({digest.hexdigest()})"
