"""The codec primitives of one GOP: keyframes, motion and residuals, checked where they are made."""

# T slots, K keyframes, P P-frames (T = K + P), S = side of the model's square input, C = S / 4 motion cells a side.

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cope_codec.warp import to_sixteenths, warp

CELL_PX = 4  # side of a motion cell, model pixels; the kernels of `warp` are written for it
I_SLOT, P_SLOT = 0, 1


@dataclass(frozen=True, eq=False, repr=False)
class GopPrimitives:
    """One GOP as the model reads it: a keyframe, then what changes from slot to slot (paper, Eq. 1).

    For every P slot t, `warp(slot t-1, model_motion) + residual` equals slot t exactly.

    Attributes:
        key: identity of the content: the packets this GOP was decoded from and every parameter that shapes the arrays.
        index: position of the GOP on the video's grid; sampled videos skip positions.
        layout: uint8 (T,), `I_SLOT` or `P_SLOT`; the first slot is always I.
        timestamps_s: float64 (T,), true presentation times, seconds from the video's first frame, increasing; in paper
            mode those of the re-encoded stream.
        keyframes: uint8 (K, S, S, 3), RGB, the pictures of the I slots stretched to the model's square input; in paper
            mode those of the re-encoded stream.
        motion: int16 (P, C, C, 2), (x, y) = source minus destination of each cell, quarter pixels of a
            `motion_width` x `motion_height` picture: where the cell's content was in the slot before.
        residual: int16 (P, S, S, 3), RGB, slot minus warped previous slot, in -255..255.
        motion_width, motion_height: size of the picture whose pixels `motion` counts, after rotation.
        source_width, source_height: size of the stream's pictures as displayed, after rotation, pixels.
        rotation: clockwise turn in degrees (0, 90, 180, 270) that was applied to pixels and vectors.
        codec: FFmpeg's name of the source codec.
        mode: `native`, `transcode`, `paper`, or `dense` for RGB frames without motion.
        vectors: int64 (P,), motion vector records that went into each P slot.
        missing: slots whose own frame could not be decoded; the nearest decoded picture stands in.
        corrupt: the decoder reported damage in one of the frames used, or refused a packet.
        interlaced: interlaced frames were met: their pictures are those of the upper field, and their own vectors are
            not used.
    """

    key: str
    index: int
    layout: npt.NDArray[np.uint8]
    timestamps_s: npt.NDArray[np.float64]
    keyframes: npt.NDArray[np.uint8]
    motion: npt.NDArray[np.int16]
    residual: npt.NDArray[np.int16]
    motion_width: int
    motion_height: int
    source_width: int
    source_height: int
    rotation: int
    codec: str
    mode: Literal["native", "transcode", "paper", "dense"]
    vectors: npt.NDArray[np.int64]
    missing: int = 0
    corrupt: bool = False
    interlaced: bool = False

    def __post_init__(self) -> None:
        slots = len(self.layout)
        p_frames = int(np.count_nonzero(self.layout))
        side = self.keyframes.shape[1] if self.keyframes.ndim == 4 else 0
        cells = side // CELL_PX
        expected: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
            "layout": ((slots,), np.uint8),
            "timestamps_s": ((slots,), np.float64),
            "keyframes": ((slots - p_frames, side, side, 3), np.uint8),
            "motion": ((p_frames, cells, cells, 2), np.int16),
            "residual": ((p_frames, side, side, 3), np.int16),
            "vectors": ((p_frames,), np.int64),
        }
        for name, (shape, dtype) in expected.items():
            array = getattr(self, name)
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(f"{name} is {array.dtype} {array.shape}, expected {np.dtype(dtype)} {shape}")
            array.setflags(write=False)
        if slots == 0 or self.layout[0] != I_SLOT:
            raise ValueError("a GOP begins with a keyframe")
        if side == 0 or side % CELL_PX:
            raise ValueError(f"the model side ({side}) must be a positive multiple of {CELL_PX}")
        if np.any(np.diff(self.timestamps_s) <= 0):
            raise ValueError("slots must be in time order")
        if min(self.motion_width, self.motion_height) < 1:
            raise ValueError("motion needs the size of the picture that it counts pixels of")

    @property
    def undecoded(self) -> bool:
        """Not one slot could be decoded: the pictures are grey and mean nothing."""
        return self.missing == len(self.layout)

    @property
    def model_side(self) -> int:
        """S, the side of the model's square input, pixels."""
        return int(self.keyframes.shape[1])

    @property
    def nbytes(self) -> int:
        """Memory that the arrays hold, bytes."""
        arrays = (self.layout, self.timestamps_s, self.keyframes, self.motion, self.residual, self.vectors)
        return int(sum(array.nbytes for array in arrays))

    def owned(self) -> GopPrimitives:
        """The same GOP, copied where its arrays are views of memory that also holds something else."""
        arrays = self.arrays()
        if all(_owns(array) for array in arrays.values()):
            return self
        copies: dict[str, Any] = {name: array.copy() for name, array in arrays.items()}
        return replace(self, **copies)

    def model_motion(self) -> npt.NDArray[np.int16]:
        """`motion` scaled to the model's input: int16 (P, C, C, 2), sixteenths of a model pixel, (x, y)."""
        return to_sixteenths(self.motion, self.model_side, self.motion_width, self.motion_height)

    def frames(self) -> npt.NDArray[np.uint8]:
        """All slots as pictures, P slots rebuilt by Eq. 1: uint8 (T, S, S, 3), RGB."""
        side = self.model_side
        out = np.empty((len(self.layout), side, side, 3), np.uint8)
        motion = self.model_motion()
        k = p = 0
        for t, kind in enumerate(self.layout):
            if kind == I_SLOT:
                out[t] = self.keyframes[k]
                k += 1
            else:
                out[t] = warp(out[t - 1], motion[p]) + self.residual[p]
                p += 1
        return out

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays by name, as `cope extract --out` stores them."""
        names = ("layout", "timestamps_s", "keyframes", "motion", "residual", "vectors")
        return {name: getattr(self, name) for name in names}

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}={array.dtype}{list(array.shape)}" for name, array in self.arrays().items())
        span = f"{self.timestamps_s[0]:.3f}-{self.timestamps_s[-1]:.3f} s"
        return f"GopPrimitives({self.key[:12]}, index={self.index}, {self.codec}/{self.mode}, {span}, {shapes})"


def _owns(array: npt.NDArray[Any]) -> bool:
    """No more memory than the array's own lives as long as it does."""
    base: Any = array
    while isinstance(base.base, np.ndarray):
        base = base.base
    return base.base is None and base.nbytes == array.nbytes
