"""Keyframes on their way through the vision encoder: pixels in, pooled tokens with row ends out."""

# N frames, S side of the model's square input (px), g vision patches a side, G pooled patches a side, d text width.

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def normalize_keyframes(keyframes: Tensor, dtype: torch.dtype) -> Tensor:
    """What SigLIP reads (mean = standard deviation = 0.5): `dtype` (N, 3, S, S) from uint8 (N, S, S, 3) RGB."""
    return (keyframes.permute(0, 3, 1, 2).float() / 127.5 - 1.0).to(dtype)


def pool_frames(features: Tensor, newline: Tensor, stride: int, mode: str) -> Tensor:
    """Pool each frame's patches and end every pooled row with a newline token (LLaVA-Video: 27 x 27 to 14 x 14 + 14).

    Args:
        features: (N, g * g, d), projected already: the projector comes first and the pooling second.
        newline: (d,), the learnt row end.
        stride: patches per side that become one token.
        mode: `bilinear` samples the patches' grid at G x G points, where a remainder counts as a whole token;
            `average` takes means and drops the remainder. LLaVA-Video's configurations name either.

    Returns:
        (N, G * (G + 1), d) in the newline's dtype, row by row.
    """
    n, patches, d = features.shape
    g = round(patches**0.5)
    grid = features.view(n, g, g, d).permute(0, 3, 1, 2).float()
    if mode == "bilinear":
        pooled = -(-g // stride)
        grid = F.interpolate(grid, size=(pooled, pooled), mode="bilinear")
    else:
        grid = F.avg_pool2d(grid, stride)
    rows = grid.to(newline.dtype).permute(0, 2, 3, 1)
    ends = newline.expand(n, rows.shape[1], 1, d)
    return torch.cat([rows, ends], 2).flatten(1, 2)
