"""Stage 0, for models whose vision encoder is not pre-trained: what drawn pictures show, and where."""

# B pictures, S side (px), g patches a side, D vision width.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cope_model.frames import normalize_keyframes
from cope_model.reference import CoPEModel
from cope_training.render import Renderer, patch_centres, patch_labels
from cope_training.scenes import COLOURS, SHAPES
from cope_training.stories import SECONDS, invent

_CELLS = 8  # a side of the coarse grid that things' places are told by
_PICTURE = 3.0  # weight of what the mean over patches tells, beside what each patch does
_SAME = 0.01  # of places that belong to one thing: mean squared distance, in halves of the picture


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """Pictures with labels.

    Attributes:
        pixels: uint8 (B, S, S, 3), RGB.
        labels: int64 (B, g * g, 2), colour and shape, 0 for the world (`render.patch_labels`).
        centres: float (B, g * g, 2), where the thing is that covers a patch (`render.patch_centres`).
    """

    pixels: Tensor
    labels: Tensor
    centres: Tensor

    def to(self, device: torch.device) -> Pictures:
        """The same on another device."""
        return Pictures(self.pixels.to(device), self.labels.to(device), self.centres.to(device))


class PictureBatches(torch.utils.data.Dataset[Pictures]):
    """Pictures drawn on the spot, each from a scene of its own; item n is batch n.

    Args:
        side, patch: of the vision encoder, pixels.
        size: pictures per batch and process.
        seed: of the scenes; textures and seeds are those of training, never held-out ones.
        rank, world: this process and how many there are.
    """

    def __init__(self, side: int, patch: int, *, size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self._side, self._patch, self._size, self._seed = side, patch, size, seed
        self._rank, self._world = rank, world

    def __getitem__(self, number: int) -> Pictures:
        pixels, labels, centres = [], [], []
        for place in range(self._rank, self._size * self._world, self._world):
            which = number * self._size * self._world + place
            scene = invent(self._seed, which).scene
            # Most pictures are starts of clips, as most keyframes are.
            random = np.random.default_rng([self._seed, 5, which])
            time_s = 0.0 if random.random() < 0.5 else random.uniform(0, SECONDS)
            picture, owner = Renderer(scene, self._side, self._side).draw(time_s)
            pixels.append(picture)
            labels.append(patch_labels(scene, owner, self._patch))
            centres.append(patch_centres(scene, owner, self._patch))
        return Pictures(*(torch.from_numpy(np.stack(arrays)) for arrays in (pixels, labels, centres)))


class Labelling(nn.Module):
    """Linear heads on a vision encoder: what covers every patch and where that lies, and what the picture holds.

    On every patch: colour and shape of the thing that covers it, the cell that holds the thing's middle, and the
    patch's own column and row. Colour and shape alone would teach the encoder to forget where a patch lies, which no
    later stage could bring back while it is frozen: which of two things moves is a question of place.

    On the mean over all patches: for every colour, whether a thing has it, and where. A language model begins by
    looking at all tokens alike; this is what it can tell then.

    A last term keeps features near unit variance and uncorrelated: the projector has no norm of its own and would
    hardly see what a few large features drown.

    Args:
        model: its vision encoder is trained, the heads are thrown away.
    """

    at: Tensor

    def __init__(self, model: CoPEModel) -> None:
        super().__init__()
        self.tower = model.model.vision_tower
        grid = model.config.geometry.grid
        self.sizes = (len(COLOURS) + 1, len(SHAPES) + 1, _CELLS + 1, _CELLS + 1, grid, grid)
        width = model.config.vision_config.hidden_size
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(self.sizes)))
        self.table = nn.Linear(width, 3 * len(COLOURS))
        at = torch.arange(grid * grid)
        self.register_buffer("at", torch.stack([at % grid, at // grid], -1), persistent=False)

    def forward(self, batch: Pictures) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and how well the heads do.

        Returns:
            Loss; `colour`, `shape`, `cell_x` and `cell_y` are accuracies on patches that a thing covers, `column` and
            `row` on all; `held` is the share of pictures whose colours are all told right, `off` how far things are
            from where the mean says, in halves of the picture; `whiteness` is the last term.

        World and things weigh the same, although the world covers nearly all patches.
        """
        features = self.tower(normalize_keyframes(batch.pixels, torch.float32)).float()
        covered = batch.labels[..., 0] > 0
        everywhere = torch.ones_like(covered)
        at = self.at.expand(len(covered), -1, -1)
        cells = ((batch.centres + 1) * (_CELLS / 2)).long().clamp(0, _CELLS - 1) + 1
        cells = cells * covered[..., None]
        logits = self.head(features).split(self.sizes, -1)
        apart = _distance_from_white(features)
        held, numbers = self._held(features.mean(1), batch)
        loss = apart + _PICTURE * held
        numbers["whiteness"] = apart.detach()
        for name, found, labels, parts in (
            ("colour", logits[0], batch.labels[..., 0], (covered, ~covered)),
            ("shape", logits[1], batch.labels[..., 1], (covered, ~covered)),
            ("cell_x", logits[2], cells[..., 0], (covered, ~covered)),
            ("cell_y", logits[3], cells[..., 1], (covered, ~covered)),
            ("column", logits[4], at[..., 0], (everywhere,)),
            ("row", logits[5], at[..., 1], (everywhere,)),
        ):
            for part in parts:
                lost = F.cross_entropy(found[part], labels[part], reduction="sum")
                loss = loss + lost / part.sum().clamp(min=1) / len(parts)
            hits = (found.argmax(-1) == labels) & parts[0]
            numbers[name] = hits.sum() / parts[0].sum().clamp(min=1)
        return loss, numbers

    def _held(self, means: Tensor, batch: Pictures) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of what means (B, D) say about every colour: is it there, and where."""
        of = F.one_hot(batch.labels[..., 0], len(COLOURS) + 1)[..., 1:].float()  # (B, g * g, colours)
        area = of.sum(1)
        there = area > 0
        share = of / area.clamp(min=1)[:, None]
        middle = torch.einsum("bpc,bpx->bcx", share, batch.centres)
        spread = torch.einsum("bpc,bpcx->bc", share, (batch.centres[:, :, None] - middle[:, None]) ** 2)
        single = there & (spread < _SAME)  # two things of one colour have no middle
        table = self.table(means).view(len(means), len(COLOURS), 3)
        seen = F.binary_cross_entropy_with_logits(table[..., 0], there.float())
        off = (((table[..., 1:] - middle) ** 2).sum(-1) * single).sum() / single.sum().clamp(min=1)
        right = ((table[..., 0] > 0) == there).all(-1).float().mean()
        return seen + off, {"held": right, "off": off.detach().sqrt()}


def _distance_from_white(features: Tensor) -> Tensor:
    """Mean squared difference, per feature, between the covariance of (B, L, D) over all patches and the identity."""
    flat = features.flatten(0, 1)
    flat = flat - flat.mean(0)
    covariance = flat.T @ flat / len(flat)
    unit = torch.eye(len(covariance), device=covariance.device)
    return ((covariance - unit) ** 2).sum(1).mean()
