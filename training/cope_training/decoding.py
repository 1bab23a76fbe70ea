"""What delta-tokens must not lose: where the motion is, and where the residual.

Answers about a single thing never ask where it moves, and an encoder that is trained on them forgets it: a linear probe
told the moving half of the picture from an untrained encoder's motion tokens in 90 of 100 clips, from a trained one's
in 77. So the tokens are also asked to say, through a linear layer, the mean motion and the residual's strength of every
cell of a coarse grid.
"""

# P P-frames, Q queries per branch, D width of the tokens, g cells a side, C motion cells a side, S side (px).

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cope_model.delta_encoder import normalize_motion
from cope_model.presets import DeltaSettings
from cope_model.reference import CoPEModel
from cope_training.pretrain import Pairs

CELLS = 8  # g
LR_SCALE = 0.5  # of the decoders; they begin at nothing
_SCALE = (
    10.0  # what there is to decode spreads by about 0.1; a linear layer learns to say 1 as fast as it can unlearn it
)
_REST = 0.05  # scaled; what a frame must hold before its error counts in full: frames at rest hold only noise


class Decoding(nn.Module):
    """Linear decoders of motion tokens and of residual tokens.

    Args:
        settings: shape of the delta-encoder.
    """

    def __init__(self, settings: DeltaSettings) -> None:
        super().__init__()
        self._settings = settings
        width = settings.queries * settings.output_width
        self.motion = nn.Linear(width, CELLS * CELLS * 2)
        self.residual = nn.Linear(width, CELLS * CELLS)
        for layer in (self.motion, self.residual):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor, motion: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Squared error as a share of what each frame holds, a mean over frames: of motion, of residuals. No frames: 0.

        A frame's own share, because a pan moves every cell and would otherwise count more than all things together.

        Args:
            tokens: of the delta-encoder, (P, 2 * Q, D).
            motion: int16 (P, C, C, 2), sixteenths of a model pixel.
            residual: int16 (P, S, S, 3).
        """
        queries = self._settings.queries
        moved, rest = coarse_motion(motion, self._settings), coarse_residual(residual)
        said = self.motion(tokens[:, :queries].flatten(1)), self.residual(tokens[:, queries:].flatten(1))
        return _unexplained(said[0], moved), _unexplained(said[1], rest)


def coarse_motion(motion: Tensor, settings: DeltaSettings) -> Tensor:
    """Mean normalised motion per cell: (P, g * g * 2), each component's cells row by row."""
    return F.adaptive_avg_pool2d(normalize_motion(motion, settings).movedim(-1, 1), CELLS).flatten(1)


def coarse_residual(residual: Tensor) -> Tensor:
    """Root of the mean strength per cell, less the frame's mean: (P, g * g), row by row.

    The root makes weak ones count.
    """
    strength = residual.float().abs().mean(-1) / 255
    cells = F.adaptive_avg_pool2d(strength[:, None], CELLS).flatten(1).sqrt()
    return cells - cells.mean(1, keepdim=True)


def _unexplained(said: Tensor, true: Tensor) -> Tensor:
    true = _SCALE * true
    error = (said.float() - true).square().mean(1)
    # A mean over no frames would be NaN. The sum is 0, and the decoders still get a gradient, of zeros, which several
    # processes average.
    return (error / (true.square().mean(1) + _REST)).sum() / max(len(error), 1)


class Decoded(nn.Module):
    """A delta-encoder that learns to be decoded and nothing else: needs neither vision encoder nor language model.

    Args:
        model: its delta-encoder is trained.
    """

    def __init__(self, model: CoPEModel) -> None:
        super().__init__()
        self.delta = model.model.delta_encoder
        self.decoding = Decoding(model.config.delta)

    def forward(self, batch: Pairs) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of both errors, and each."""
        motion, residual = self.decoding(self.delta(batch.motion, batch.residual), batch.motion, batch.residual)
        return motion + residual, {"motion_lost": motion.detach(), "residual_lost": residual.detach()}
