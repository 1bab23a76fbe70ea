"""What a model is shown of a clip: which slots are keyframes, which delta-tokens there are, mirrored or not."""

# T slots of a GOP, S model side (px), K keyframes, P P-frames.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from cope_codec import I_SLOT, P_SLOT, VideoOptions, residual_after_warp
from cope_training.primitives import Gop

Deltas = Literal["on", "zeroed", "motion", "residual", "none"]
DELTAS: tuple[Deltas, ...] = get_args(Deltas)
_KEPT: dict[Deltas, tuple[float, float]] = {
    "on": (1.0, 1.0),
    "zeroed": (0.0, 0.0),
    "motion": (1.0, 0.0),
    "residual": (0.0, 1.0),
}


@dataclass(frozen=True, slots=True)
class View:
    """How to look at a clip.

    Attributes:
        keyframes: per full GOP; None leaves the GOPs as they were extracted.
        deltas: `on`; `zeroed` (the tokens are there, all zero); `motion` or `residual` (the other group is zero);
            `none` (P slots are left out).
        flip_x, flip_y: mirror the pictures and their motion.
    """

    keyframes: int | None = None
    deltas: Deltas = "on"
    flip_x: bool = False
    flip_y: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """Arrays of one GOP as the model takes them.

    Attributes:
        layout: of the slots that are shown.
        keyframes: uint8 (K, S, S, 3), RGB.
        motion: int16 (P, S / 4, S / 4, 2), sixteenths of a model pixel.
        residual: int16 (P, S, S, 3).
        kept: factors of the motion and the residual tokens.
        timestamps_s: true times of the slots that are shown, seconds.
    """

    layout: tuple[int, ...]
    keyframes: npt.NDArray[np.uint8]
    motion: npt.NDArray[np.int16]
    residual: npt.NDArray[np.int16]
    kept: tuple[float, float]
    timestamps_s: tuple[float, ...]


def mirror(
    pictures: npt.NDArray[np.uint8], motion: npt.NDArray[np.int16], *, x: bool, y: bool
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int16]]:
    """Mirror pictures (..., S, S, 3) and their motion (..., C, C, 2); vectors turn with the picture."""
    for axis, component, wanted in ((-2, 0, x), (-3, 1, y)):
        if wanted:
            pictures, motion = np.flip(pictures, axis), np.flip(motion, axis).copy()
            motion[..., component] *= -1
    return pictures, motion


def layout_of(layout: Sequence[int], keyframes: int | None) -> tuple[int, ...]:
    """The layout with that many keyframes per full GOP; a GOP's own keyframes are never taken away."""
    if keyframes is None:
        return tuple(layout)
    slots = set(VideoOptions(keyframes_per_gop=keyframes).keyframe_slots())
    return tuple(I_SLOT if kind == I_SLOT or slot in slots else P_SLOT for slot, kind in enumerate(layout))


def show(gop: Gop, view: View) -> Shown:
    """Make a GOP's arrays under a view; the residual is computed here (Eq. 1)."""
    layout = layout_of(gop.layout, view.keyframes)
    pictures, motion = mirror(np.array(gop.pictures), np.array(gop.motion), x=view.flip_x, y=view.flip_y)
    pictures = np.ascontiguousarray(pictures)
    keys = [slot for slot, kind in enumerate(layout) if kind == I_SLOT]
    deltas = [slot for slot, kind in enumerate(layout) if kind == P_SLOT and view.deltas != "none"]
    residual = np.empty((len(deltas), *pictures.shape[1:]), np.int16)
    for row, slot in zip(residual, deltas, strict=True):
        residual_after_warp(pictures[slot - 1], pictures[slot], np.array(motion[slot]), row)
    times = gop.timestamps_s
    if view.deltas == "none":
        layout, times = (I_SLOT,) * len(keys), tuple(times[slot] for slot in keys)
    return Shown(layout, pictures[keys], motion[deltas], residual, _KEPT.get(view.deltas, (1.0, 1.0)), times)
