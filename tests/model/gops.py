"""Hand-made primitives, so that these tests need no video and no FFmpeg."""

# K keyframes, P P-frames, S side of the model's square input (px), C = S / 4 motion cells a side.

from __future__ import annotations

import numpy as np

from cope_codec.primitives import GopPrimitives


def make_gop(layout: str, *, side: int = 128, seed: int = 0, key: str | None = None, index: int = 0) -> GopPrimitives:
    """A GOP such as `make_gop("IPPP")` with random contents that depend on the seed alone."""
    random = np.random.default_rng(seed)
    kinds = np.array([letter == "P" for letter in layout], np.uint8)
    p_frames = int(kinds.sum())
    k_frames = len(layout) - p_frames
    cells = side // 4
    return GopPrimitives(
        key=key if key is not None else f"{layout}-{side}-{seed}",
        index=index,
        layout=kinds,
        timestamps_s=np.arange(len(layout), dtype=np.float64) + 8 * index,
        keyframes=random.integers(0, 256, (k_frames, side, side, 3), np.uint8),
        motion=random.integers(-60, 61, (p_frames, cells, cells, 2), np.int16),
        residual=random.integers(-128, 129, (p_frames, side, side, 3), np.int16),
        motion_width=side,
        motion_height=side,
        source_width=side,
        source_height=side,
        rotation=0,
        codec="h264",
        mode="native" if p_frames else "dense",
        vectors=np.full(p_frames, cells * cells, np.int64),
    )
