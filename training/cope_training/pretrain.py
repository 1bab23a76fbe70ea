"""Stage 1: the delta-encoder learns to say what has changed (paper, Eq. 7-10).

A reference transformer moves the tokens of the frame before along the motion tokens, a warped transformer adds what the
residual tokens say, and the result is compared, patch by patch, with what the frozen vision encoder makes of the frame
itself. Both transformers are dropped afterwards.
"""

# N pairs of frames, S side (px), g patches a side, D vision width, Q queries per branch.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cope_codec import P_SLOT, residual_after_warp
from cope_model.delta_encoder import TransformerLayer
from cope_model.frames import normalize_keyframes
from cope_model.reference import CoPEModel
from cope_training.primitives import CachedVideo
from cope_training.views import mirror


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Frames, the frames before them and the primitives between.

    Attributes:
        before, after: uint8 (N, S, S, 3), RGB.
        motion: int16 (N, S / 4, S / 4, 2), sixteenths of a model pixel.
        residual: int16 (N, S, S, 3).
    """

    before: Tensor
    after: Tensor
    motion: Tensor
    residual: Tensor

    def to(self, device: torch.device) -> Pairs:
        """The same on another device."""
        return Pairs(*(getattr(self, name).to(device) for name in ("before", "after", "motion", "residual")))


class PairBatches(torch.utils.data.Dataset[Pairs]):
    """Random P slots of random clips; item n is batch n.

    Args:
        videos: of the cache; those that could not be used are left out.
        size: pairs per batch and process.
        seed: of what is drawn.
        flips: mirror at random.
        rank, world: this process and how many there are.

    Raises:
        ValueError: no video has a P slot.
    """

    def __init__(
        self,
        videos: Sequence[CachedVideo | None],
        *,
        size: int,
        seed: int,
        flips: bool = True,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._slots = [
            (video, gop, slot)
            for video in videos
            if video is not None
            for gop, layout in enumerate(video.layouts)
            for slot, kind in enumerate(layout)
            if kind == P_SLOT
        ]
        if not self._slots:
            raise ValueError("no video has a P slot: there is nothing to pre-train on")
        self._size, self._seed, self._flips = size, seed, flips
        self._rank, self._world = rank, world

    def __getitem__(self, number: int) -> Pairs:
        rows = []
        for place in range(self._rank, self._size * self._world, self._world):
            which = number * self._size * self._world + place
            random = np.random.default_rng([self._seed, 6, which])
            video, index, slot = self._slots[int(random.integers(len(self._slots)))]
            gop = video.gops()[index]
            flip_x, flip_y = (bool(random.integers(2)) and self._flips for _ in range(2))
            two = slice(slot - 1, slot + 1)
            pictures, motion = mirror(np.array(gop.pictures[two]), np.array(gop.motion[two]), x=flip_x, y=flip_y)
            before, after = np.ascontiguousarray(pictures)
            field = np.ascontiguousarray(motion[1])
            rows.append((before, after, field, residual_after_warp(before, after, field)))
        return Pairs(*(torch.from_numpy(np.stack(arrays)) for arrays in zip(*rows, strict=True)))


class FrameTransformer(nn.Module):
    """Changes a frame's patch tokens as a few other tokens say: (N, g * g, D) and (N, Q, D) to (N, g * g, D).

    Its layers add to their input, so that an untrained one leaves the frame nearly as it is.
    """

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.kind = nn.Parameter(torch.randn(width) * 0.02)  # tells the few tokens from patches
        self.layers = nn.ModuleList(TransformerLayer(width, heads) for _ in range(layers))

    def forward(self, patches: Tensor, tokens: Tensor) -> Tensor:
        """The changed patches."""
        x = torch.cat([patches, tokens + self.kind], 1)
        for layer in self.layers:
            x = layer(x)
        return x[:, : patches.shape[1]]


class NextFrame(nn.Module):
    """Predicts the vision encoder's tokens of a frame from those of the frame before and the delta-tokens.

    Args:
        model: its delta-encoder is trained; its vision encoder stays as it is.
        layers: of each of the two transformers; the paper's are as deep as the delta-encoder's.
    """

    def __init__(self, model: CoPEModel, layers: int | None = None) -> None:
        super().__init__()
        settings = model.config.delta
        width, heads = settings.output_width, settings.heads
        self.queries = settings.queries
        self.delta = model.model.delta_encoder
        self.reference = FrameTransformer(width, layers or settings.layers, heads)
        self.warped = FrameTransformer(width, layers or settings.layers, heads)
        # Not a part of this module: it is neither trained nor saved.
        self._tower = [model.model.vision_tower]

    def tokens(self, pictures: Tensor) -> Tensor:
        """What the frozen vision encoder makes of pictures: (N, g * g, D)."""
        tower = self._tower[0]
        with torch.no_grad():
            weight = next(tower.parameters())
            out: Tensor = tower(normalize_keyframes(pictures, weight.dtype)).float()
        return out

    def predict(self, before: Tensor, motion: Tensor, residual: Tensor) -> Tensor:
        """Tokens of the frame that follows: (N, g * g, D) from tokens of the frame before and primitives."""
        deltas = self.delta(motion, residual)
        moved = self.reference(before, deltas[:, : self.queries])
        out: Tensor = self.warped(moved, deltas[:, self.queries :])
        return out

    def forward(self, batch: Pairs) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error over patches, and as a share of what repeating the frame before would leave."""
        before, after = self.tokens(batch.before), self.tokens(batch.after)
        predicted = self.predict(before, batch.motion, batch.residual).float()
        loss = F.mse_loss(predicted, after)
        return loss, {"of_copying": loss.detach() / F.mse_loss(before, after).clamp(min=1e-6)}
