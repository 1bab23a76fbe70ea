"""Draws primitives on a time line: keyframes, motion as arrows, residual as a heat map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cope_codec.primitives import I_SLOT, GopPrimitives

_ARROWS = 24  # a side: enough to see the flow, few enough to see the picture
_TILE_IN = 1.9  # inches
_MOST_GOPS = 16
_RESIDUAL_SPAN = 64  # residuals rarely exceed this; brighter is clipped


def save_plot(gops: Sequence[GopPrimitives], path: str | Path, title: str = "") -> None:
    """Write a PNG (or what the file's ending says) with one row pair per GOP.

    The upper row shows each slot's picture with the motion that led to it: an arrow points from where content was one
    slot before to where it is now. The lower row shows the residual's mean magnitude over RGB.

    Args:
        gops: primitives in time order; of more than 16 the first 16 are drawn.
        path: file to write.
        title: line above the picture.

    Raises:
        ModuleNotFoundError: matplotlib is missing (`pip install cope-serve[plot]`).
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    drawn = gops[:_MOST_GOPS]
    columns = max(len(gop.layout) for gop in drawn)
    width = max(columns * _TILE_IN, 6.0)
    figure, axes = plt.subplots(
        2 * len(drawn), columns, figsize=(width, len(drawn) * 2 * (_TILE_IN + 0.3) + 0.6), squeeze=False
    )
    for axis in axes.flat:
        axis.axis("off")
    image = None
    for row, gop in enumerate(drawn):
        image = _draw_gop(gop, axes[2 * row], axes[2 * row + 1]) or image
    height = figure.get_size_inches()[1]
    figure.subplots_adjust(left=0.01, right=0.93, bottom=0.01, top=1 - 0.6 / height, hspace=0.16, wspace=0.04)
    hidden = f" (first {len(drawn)} of {len(gops)} GOPs)" if len(gops) > len(drawn) else ""
    figure.suptitle(f"{title}{hidden}".strip(), fontsize=11, x=0.01, y=1 - 0.15 / height, ha="left", va="top")
    if image is not None:
        share = min(0.5, 3.0 / height)
        bar = figure.colorbar(image, cax=figure.add_axes((0.94, 0.5 - share / 2, 0.012, share)))
        bar.set_label("mean |residual|, grey levels", fontsize=8)
        bar.ax.tick_params(labelsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_gop(gop: GopPrimitives, pictures: Any, residuals: Any) -> Any:
    frames = gop.frames()
    image = None
    p = 0
    for t, kind in enumerate(gop.layout):
        axis = pictures[t]
        axis.imshow(frames[t], interpolation="bilinear")
        label = f"GOP {gop.index}  " if t == 0 else ""
        if kind == I_SLOT:
            axis.set_title(f"{label}I  {gop.timestamps_s[t]:.2f} s", fontsize=8, color="tab:blue", weight="bold")
            continue
        _draw_arrows(axis, gop, p)
        axis.set_title(f"{label}P  {gop.timestamps_s[t]:.2f} s", fontsize=8)
        heat = np.abs(gop.residual[p]).mean(axis=-1)
        image = residuals[t].imshow(heat, cmap="inferno", vmin=0, vmax=_RESIDUAL_SPAN)
        p += 1
    return image


def _draw_arrows(axis: Any, gop: GopPrimitives, p: int) -> None:
    motion = gop.model_motion()[p].astype(np.float64) / 16
    cells = len(motion)
    step = max(1, cells // _ARROWS)
    picks = np.arange(step // 2, cells, step)
    moved = motion[np.ix_(picks, picks)]
    centre = (picks + 0.5) * gop.model_side / cells - 0.5
    x, y = np.meshgrid(centre, centre)
    # Motion is source minus destination; the eye expects the way the content went.
    keep = np.hypot(moved[..., 0], moved[..., 1]) > 1.0  # below a pixel there would only be dots
    axis.quiver(
        (x + moved[..., 0])[keep],
        (y + moved[..., 1])[keep],
        -moved[..., 0][keep],
        -moved[..., 1][keep],
        angles="xy",
        scale_units="xy",
        scale=1,
        color="lime",
        width=0.006,
    )
    axis.set_xlim(-0.5, gop.model_side - 0.5)
    axis.set_ylim(gop.model_side - 0.5, -0.5)
