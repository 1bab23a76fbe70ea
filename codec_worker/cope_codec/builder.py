"""Collects the slots of one GOP into its primitives."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cope_codec.container import StreamInfo
from cope_codec.plan import GopPlan, PlanMode
from cope_codec.primitives import CELL_PX, I_SLOT, GopPrimitives
from cope_codec.warp import residual_after_warp, to_sixteenths

_GREY = 128


class GopBuilder:
    """Takes the pictures and motion of a GOP's slots, in order, and yields its `GopPrimitives`.

    Args:
        gop: the plan to fill.
        info: the stream.
        side: S, side of the model's square input, pixels.
        mode: how the motion was made.
        motion_size: (width, height) of the unrotated picture whose pixels the motion counts.
    """

    def __init__(
        self, gop: GopPlan, info: StreamInfo, side: int, mode: PlanMode, motion_size: tuple[int, int], key: str
    ) -> None:
        self.gop = gop
        self._info, self._side, self._mode, self._key = info, side, mode, key
        self._motion_size = motion_size
        cells = side // CELL_PX
        self._keyframes = np.empty((gop.i_frames, side, side, 3), np.uint8)
        self._motion = np.zeros((gop.p_frames, cells, cells, 2), np.int16)
        self._residual = np.empty((gop.p_frames, side, side, 3), np.int16)
        self._vectors = np.zeros(gop.p_frames, np.int64)
        self._previous: npt.NDArray[np.uint8] | None = None
        self._turns = 0  # quarter turns, counter-clockwise as numpy's rot90 counts them
        self._k = self._p = 0
        self.missing = 0
        self.corrupt = self.interlaced = False

    @property
    def filled(self) -> int:
        """Slots taken so far."""
        return self._k + self._p

    @property
    def done(self) -> bool:
        """All slots are there."""
        return self.filled == len(self.gop.slots)

    @property
    def next_is_keyframe(self) -> bool:
        """The next slot is a picture and needs no motion."""
        return self.gop.slots[self.filled].kind == I_SLOT

    def put(
        self, picture: npt.NDArray[np.uint8], motion: npt.NDArray[np.int16] | None, vectors: int, rotation: int
    ) -> None:
        """Add the next slot.

        Args:
            picture: uint8 (S, S, 3), RGB, as decoded (not rotated).
            motion: int16 (C, C, 2) in quarter pixels of `motion_size`, not rotated; None for a keyframe.
            vectors: records that went into the motion.
            rotation: counter-clockwise turn in degrees that makes the picture upright.
        """
        self._turns = (rotation // 90) % 4
        if self._turns:
            picture = np.ascontiguousarray(np.rot90(picture, self._turns))
        self._add(picture, motion, vectors)

    def pad(self) -> None:
        """Fill the next slot although no frame came: the slot before it again, or grey if there is none."""
        self.missing += 1
        picture = self._previous
        if picture is None:
            picture = np.full((self._side, self._side, 3), _GREY, np.uint8)
        self._add(picture, None, 0)

    def finish(self) -> GopPrimitives:
        """The finished GOP; its arrays are read-only from here on."""
        turned = self._turns % 2 == 1
        motion_width, motion_height = self._motion_size[::-1] if turned else self._motion_size
        width, height = self._info.width, self._info.height
        return GopPrimitives(
            key=self._key,
            index=self.gop.index,
            layout=np.array([slot.kind for slot in self.gop.slots], np.uint8),
            timestamps_s=np.array([slot.time_s for slot in self.gop.slots], np.float64),
            keyframes=self._keyframes,
            motion=self._motion,
            residual=self._residual,
            motion_width=motion_width,
            motion_height=motion_height,
            source_width=height if turned else width,
            source_height=width if turned else height,
            rotation=(-90 * self._turns) % 360,
            codec=self._info.codec,
            mode=self._mode,
            vectors=self._vectors,
            missing=self.missing,
            corrupt=self.corrupt,
            interlaced=self.interlaced,
        )

    def _add(self, picture: npt.NDArray[np.uint8], motion: npt.NDArray[np.int16] | None, vectors: int) -> None:
        if self.next_is_keyframe:
            self._keyframes[self._k] = picture
            self._previous = self._keyframes[self._k]
            self._k += 1
            return
        assert self._previous is not None  # a GOP begins with a keyframe
        field = self._motion[self._p]
        if motion is not None:
            field[:] = _turn(motion, self._turns) if self._turns else motion
        width, height = self._motion_size[::-1] if self._turns % 2 else self._motion_size
        scaled = to_sixteenths(field, self._side, width, height)
        out = self._residual[self._p]
        residual_after_warp(self._previous, picture, scaled, out, drop_unhelpful=motion is not None)
        if motion is not None:
            kept = scaled.view(np.int32) != 0  # both components at once
            field *= kept
        self._vectors[self._p] = vectors
        self._previous = picture
        self._p += 1


def _turn(motion: npt.NDArray[np.int16], turns: int) -> npt.NDArray[np.int16]:
    """Rotate a motion field by quarter turns counter-clockwise: its cells and its vectors."""
    field = np.rot90(motion, turns)
    x, y = field[..., 0], field[..., 1]
    # One turn takes the pixel at (x, y) to (y, W - 1 - x), so a vector (x, y) becomes (y, -x).
    parts = ((x, y), (y, -x), (-x, -y), (-y, x))[turns]
    return np.stack(parts, axis=-1)
