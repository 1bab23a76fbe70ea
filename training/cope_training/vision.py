"""Stage 0, for models whose vision encoder is not pre-trained: colour and shape of every patch of drawn pictures."""

# B pictures, S side (px), g patches a side, D vision width.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cope_model.frames import normalize_keyframes
from cope_model.reference import CoPEModel
from cope_training.render import Renderer, patch_labels
from cope_training.scenes import COLOURS, SHAPES
from cope_training.stories import SECONDS, invent


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """Pictures with labels.

    Attributes:
        pixels: uint8 (B, S, S, 3), RGB.
        labels: int64 (B, g * g, 2), colour and shape, 0 for the world (`render.patch_labels`).
    """

    pixels: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Pictures:
        """The same on another device."""
        return Pictures(self.pixels.to(device), self.labels.to(device))


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
        pixels, labels = [], []
        for place in range(self._rank, self._size * self._world, self._world):
            which = number * self._size * self._world + place
            scene = invent(self._seed, which).scene
            # Most pictures are starts of clips, as most keyframes are.
            random = np.random.default_rng([self._seed, 5, which])
            time_s = 0.0 if random.random() < 0.5 else random.uniform(0, SECONDS)
            picture, owner = Renderer(scene, self._side, self._side).draw(time_s)
            pixels.append(picture)
            labels.append(patch_labels(scene, owner, self._patch))
        return Pictures(torch.from_numpy(np.stack(pixels)), torch.from_numpy(np.stack(labels)))


class Labelling(nn.Module):
    """Linear heads on every patch of the vision encoder: colour and shape of what covers it, and its column and row.

    Colour and shape alone would teach the encoder to forget where a patch lies, which no later stage could bring back
    while it is frozen: which of two things moves is a question of place.

    Args:
        model: its vision encoder is trained, the heads are thrown away.
    """

    def __init__(self, model: CoPEModel) -> None:
        super().__init__()
        self.tower = model.model.vision_tower
        grid = model.config.geometry.grid
        self.sizes = (len(COLOURS) + 1, len(SHAPES) + 1, grid, grid)
        width = model.config.vision_config.hidden_size
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(self.sizes)))
        at = torch.arange(grid * grid)
        self.register_buffer("places", torch.stack([at % grid, at // grid], -1), persistent=False)

    def forward(self, batch: Pictures) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the four, and accuracies: of colour and shape on patches that a thing covers.

        World and things weigh the same, although the world covers nearly all patches.
        """
        pixels = normalize_keyframes(batch.pixels, torch.float32)
        logits = self.head(self.tower(pixels)).float().split(self.sizes, -1)
        covered = batch.labels[..., 0] > 0
        everywhere = torch.ones_like(covered)
        places = self.places.expand(len(covered), -1, -1)
        loss = logits[0].new_zeros(())
        numbers: dict[str, Tensor] = {}
        for name, found, labels, parts in (
            ("colour", logits[0], batch.labels[..., 0], (covered, ~covered)),
            ("shape", logits[1], batch.labels[..., 1], (covered, ~covered)),
            ("column", logits[2], places[..., 0], (everywhere,)),
            ("row", logits[3], places[..., 1], (everywhere,)),
        ):
            for part in parts:
                lost = F.cross_entropy(found[part], labels[part], reduction="sum")
                loss = loss + lost / part.sum().clamp(min=1) / len(parts)
            hits = (found.argmax(-1) == labels) & parts[0]
            numbers[name] = hits.sum() / parts[0].sum().clamp(min=1)
        return loss, numbers
