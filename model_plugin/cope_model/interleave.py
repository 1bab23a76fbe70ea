"""The order of visual tokens within a GOP, defined once for the vLLM model, the reference and the training."""

# K keyframes, P P-frames, M tokens of an I-frame, Q queries per delta branch, d text width, T = K + P slots.

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

I_SLOT, P_SLOT = 0, 1  # as in cope_codec.primitives, which this file need not load


def close_groups(deltas: Tensor, newline: Tensor) -> Tensor:
    """End both groups of a P-frame: motion, newline, residual, newline.

    The paper counts two newlines per P-frame and leaves their places open; these are ours.

    Args:
        deltas: (P, 2 * Q, d), Q motion tokens, then Q residual tokens.
        newline: (d,), the same row end that keyframes use.

    Returns:
        (P, 2 * Q + 2, d).
    """
    p, tokens, d = deltas.shape
    end = newline.to(deltas.dtype).expand(p, 1, d)
    motion, residual = torch.split(deltas, tokens // 2, 1)
    return torch.cat([motion, end, residual, end], 1)


def interleave(layout: Sequence[int], i_tokens: Tensor, p_tokens: Tensor) -> Tensor:
    """Put the tokens of a GOP's frames in time order.

    Args:
        layout: T slots, 0 = I and 1 = P.
        i_tokens: (K, M, d).
        p_tokens: (P, 2 * Q + 2, d).

    Returns:
        (tokens, d).

    Raises:
        ValueError: the layout asks for more or fewer frames than there are.
    """
    p_frames = sum(layout)
    if (len(layout) - p_frames, p_frames) != (len(i_tokens), len(p_tokens)):
        raise ValueError(
            f"the layout has {len(layout) - p_frames} I and {p_frames} P slots, but {len(i_tokens)} keyframes and "
            f"{len(p_tokens)} P-frames were encoded"
        )
    keyframes, deltas = iter(i_tokens), iter(p_tokens)
    return torch.cat([next(keyframes) if kind == I_SLOT else next(deltas) for kind in layout])


def interleave_gops(layouts: Sequence[Sequence[int]], i_tokens: Tensor, p_tokens: Tensor) -> list[Tensor]:
    """`interleave` for several GOPs whose frames were encoded in one batch, in the GOPs' order."""
    p_counts = [sum(layout) for layout in layouts]
    i_counts = [len(layout) - p for layout, p in zip(layouts, p_counts, strict=True)]
    i_groups, p_groups = torch.split(i_tokens, i_counts), torch.split(p_tokens, p_counts)
    return [interleave(layout, i, p) for layout, i, p in zip(layouts, i_groups, p_groups, strict=True)]
