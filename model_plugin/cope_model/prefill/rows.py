"""The four rows of the paper's latency table, and what they feed the model."""

# N = 64 slots, S side of the model's square input (px), C = S / 4 motion cells a side.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from cope_model.config import CoPEConfig
from cope_model.presets import Geometry

GOP_SLOTS = 8
GOPS = 8
GENERATED_TOKENS = 64
TEXT_TOKENS = 32  # a question and what the chat template puts around it; the paper's table counts visual tokens only
_MOTION_RANGE, _RESIDUAL_RANGE = 500, 60  # sixteenths of a model pixel, grey levels


@dataclass(frozen=True, slots=True)
class Row:
    """One way to sample a clip of one slot per second.

    Attributes:
        keyframes_per_gop: slots of each GOP that are pictures; None is the dense baseline, where all of them are.
        gops: GOPs of the clip (paper: 64 s, i.e. 8).
    """

    keyframes_per_gop: int | None
    gops: int = GOPS

    def __post_init__(self) -> None:
        if self.keyframes_per_gop is not None and GOP_SLOTS % self.keyframes_per_gop:
            raise ValueError(f"keyframes_per_gop must divide {GOP_SLOTS}, not {self.keyframes_per_gop}")
        if self.gops < 1:
            raise ValueError(f"gops must be at least 1, not {self.gops}")

    @property
    def name(self) -> str:
        """What the table calls it."""
        if self.keyframes_per_gop is None:
            return f"{self.i_frames} dense frames"
        return f"{self.keyframes_per_gop} keyframe{'s' * (self.keyframes_per_gop > 1)} per GOP"

    @property
    def layouts(self) -> list[list[int]]:
        """Per GOP its slots, 0 = I and 1 = P."""
        every = 1 if self.keyframes_per_gop is None else GOP_SLOTS // self.keyframes_per_gop
        return [[int(slot % every > 0) for slot in range(GOP_SLOTS)] for _ in range(self.gops)]

    @property
    def p_frames(self) -> int:
        """Slots that are P-frames."""
        return sum(map(sum, self.layouts))

    @property
    def i_frames(self) -> int:
        """Slots that are pictures."""
        return GOP_SLOTS * self.gops - self.p_frames

    def prompt_tokens(self, geometry: Geometry) -> int:
        """Visual tokens and the question's."""
        return geometry.tokens(self.i_frames, self.p_frames) + TEXT_TOKENS


ROWS = (Row(None), Row(4), Row(2), Row(1))


@dataclass(frozen=True, slots=True)
class PaperRow:
    """What the paper reports of a row: seconds, and the parts of the dense baseline's that are saved."""

    ttft_s: float
    e2el_s: float
    ttft_cut: float | None
    e2el_cut: float | None


# By keyframes per GOP: one consumer GPU, LLaVA-Video-7B, 64 generated tokens.
PAPER: Mapping[int | None, PaperRow] = MappingProxyType(
    {
        None: PaperRow(2.39, 3.78, None, None),
        4: PaperRow(0.90, 2.28, 0.623, 0.397),
        2: PaperRow(0.51, 1.71, 0.787, 0.548),
        1: PaperRow(0.33, 1.66, 0.862, 0.561),
    }
)


@dataclass(frozen=True, slots=True)
class Inputs:
    """What comes out of the codec workers and the tokenizer.

    Attributes:
        keyframes: uint8 (I, S, S, 3) RGB.
        motion: int16 (P, C, C, 2), sixteenths of a model pixel.
        residual: int16 (P, S, S, 3).
        text: int64 (1, text tokens), ids.
    """

    keyframes: Tensor
    motion: Tensor
    residual: Tensor
    text: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return sum(tensor.nbytes for tensor in (self.keyframes, self.motion, self.residual, self.text))

    def to(self, device: torch.device) -> Inputs:
        """A copy on the device; it is under way when this returns, if this one's memory is pinned."""
        tensors = (self.keyframes, self.motion, self.residual, self.text)
        return Inputs(*(tensor.to(device, non_blocking=True) for tensor in tensors))


def random_inputs(row: Row, config: CoPEConfig, *, pinned: bool = False, seed: int = 0) -> Inputs:
    """Noise of a row's shapes, on the host: what it costs does not depend on what it shows.

    Args:
        row: how many frames of either kind.
        config: the model's, for its side and vocabulary.
        pinned: in memory that a GPU can read by itself.
        seed: of the noise.
    """
    side, cells = config.geometry.side, config.geometry.side // config.motion_cell_px
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        tensor = torch.randint(low, high, shape, generator=generator, dtype=dtype)
        return tensor.pin_memory() if pinned else tensor

    i_frames, p_frames = row.i_frames, row.p_frames
    return Inputs(
        keyframes=draw(0, 256, (i_frames, side, side, 3), torch.uint8),
        motion=draw(-_MOTION_RANGE, _MOTION_RANGE + 1, (p_frames, cells, cells, 2), torch.int16),
        residual=draw(-_RESIDUAL_RANGE, _RESIDUAL_RANGE + 1, (p_frames, side, side, 3), torch.int16),
        text=draw(0, config.text_config.vocab_size, (1, TEXT_TOKENS), torch.int64),
    )
