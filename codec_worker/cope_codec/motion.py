"""Motion vectors as FFmpeg exports them, laid on a grid and traced back through a window of frames."""

# M records of one frame; F frames of a window; H, W = rows and columns of 8-pixel blocks; C = motion cells a side.

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import av
import numba as nb
import numpy as np
import numpy.typing as npt
from av.codec.context import Flags2
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import PictureType

from cope_codec.container import Source, open_container, video_stream

# AVMotionVector of libavutil/motion_vector.h. A vector's block has its *centre* at (dst_x, dst_y); it was taken from
# (dst_x + motion_x / motion_scale, dst_y + motion_y / motion_scale) of the reference picture, so the vector is source
# minus destination. (src_x, src_y) is the same, truncated to whole pixels. `source` is -1 for a past reference and +1
# for a future one. The record has padding of undefined content: never hash or compare raw bytes.
MOTION_VECTOR = np.dtype(
    {
        "names": ["source", "w", "h", "src_x", "src_y", "dst_x", "dst_y", "motion_x", "motion_y", "motion_scale"],
        "formats": ["<i4", "u1", "u1", "<i2", "<i2", "<i2", "<i2", "<i4", "<i4", "<u2"],
        "offsets": [0, 4, 5, 6, 8, 10, 12, 24, 28, 32],
        "itemsize": 40,
    }
)
_WORDS = 10  # int32 words of a record
BLOCK_PX = 8  # side of a grid block: the smallest partition that FFmpeg exports
SUBPEL = 4  # fields count quarter pixels
_LIMIT = 32767  # symmetric, so that turning a picture can negate a vector
_POINTS = 1024  # traced at a time: their coordinates stay in the first-level cache


def side_data(frame: av.VideoFrame) -> Any:
    """The frame's motion vector buffer, or None.

    `frame.side_data` would do, but it makes a reference cycle per frame: memory grows by hundreds of MB at 1080p and
    extraction takes 1.5 times as long. The container class is not documented, which is why PyAV is pinned.
    """
    return SideDataContainer(frame).get(  # type: ignore[call-arg]
        SideDataType.MOTION_VECTORS
    )


def read_vectors(frame: av.VideoFrame) -> npt.NDArray[Any]:
    """All motion vectors of a decoded frame.

    Args:
        frame: from a decoder with `Flags2.export_mvs`.

    Returns:
        `MOTION_VECTOR` (M,), a copy; empty for intra frames.
    """
    data = side_data(frame)
    if data is None:
        return np.empty(0, MOTION_VECTOR)
    return np.frombuffer(data, MOTION_VECTOR).copy()


@dataclass(frozen=True, slots=True, eq=False)
class FrameVectors:
    """One frame's motion vectors.

    Attributes:
        pts: presentation timestamp, ticks of the stream; None where the container has none.
        kind: `I`, `P` or `B`, as coded.
        width, height: picture size before rotation, pixels.
        vectors: `MOTION_VECTOR` (M,).
    """

    pts: int | None
    kind: str
    width: int
    height: int
    vectors: npt.NDArray[Any]


def iter_vectors(source: Source) -> Iterator[FrameVectors]:
    """Every frame of a video in display order, B-frames too, with its raw vectors.

    Raises:
        CodecError: `invalid_video` or `no_video_stream`.
    """
    with open_container(source) as container:
        stream = video_stream(container)
        stream.codec_context.flags2 |= Flags2.export_mvs
        stream.thread_type = "SLICE"  # frame threads export wrong vectors for B-frames
        for frame in container.decode(stream):
            kind = PictureType(frame.pict_type).name
            yield FrameVectors(frame.pts, kind, frame.width, frame.height, read_vectors(frame))


@nb.njit(cache=True, nogil=True, error_model="numpy")
def _rasterise(records, field):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Past vectors onto 8-pixel blocks, packed as `_pack` does; returns how many records counted.

    Records come as int32 words (M, 10), of which a vector needs six: fewer loads than field by field.
    """
    rows, columns = field.shape
    field[:] = 0
    used = 0
    for i in range(records.shape[0]):
        if records[i, 0] >= 0:
            continue
        used += 1
        mx, my = records[i, 6], records[i, 7]
        if mx == 0 and my == 0:
            continue
        scale = records[i, 8] & 0xFFFF
        if scale == 2:
            mx *= 2
            my *= 2
        elif scale != 4 and scale > 0:
            mx = mx * 4 // scale
            my = my * 4 // scale
        packed = _pack(mx, my)
        width, height = records[i, 1] & 0xFF, (records[i, 1] >> 8) & 0xFF
        x0 = ((records[i, 2] >> 16) - (width >> 1)) >> 3  # dst_x is the upper half of its word
        y0 = (np.int32(np.int16(records[i, 3] & 0xFFFF)) - (height >> 1)) >> 3
        if width == 16 and height == 16 and 0 <= x0 < columns - 1 and 0 <= y0 < rows - 1:
            upper, lower, left = field[y0], field[y0 + 1], np.uint32(x0)
            upper[left] = upper[left + np.uint32(1)] = lower[left] = lower[left + np.uint32(1)] = packed
            continue
        for y in range(max(y0, 0), min(y0 + max(height >> 3, 1), rows)):
            for x in range(max(x0, 0), min(x0 + max(width >> 3, 1), columns)):
                field[y, x] = packed
    return used


@nb.njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _pack(x, y):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """A vector's components, clipped to 16 bits, as one int32: x in the lower half. It is loaded and stored at once."""
    low = np.int32(min(max(x, -32768), 32767)) & np.int32(0xFFFF)
    return np.int32(np.int32(min(max(y, -32768), 32767)) << 16) | low


@nb.njit(cache=True, nogil=True, error_model="numpy")
def _trace_back(fields, x0, y0, x_end, y_end, out):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Follow points back through all fields, newest first; `out` (N, 2) gets where each came from, minus where it is.

    Frames outermost, and each step in three loops, of which only the look-up in the middle is not made of vector
    instructions: 4 times as fast as point by point.
    """
    columns = np.int32(fields.shape[2])
    where = np.empty(_POINTS, np.uint32)
    found = np.empty(_POINTS, np.int32)
    x = np.empty(_POINTS, np.int32)
    y = np.empty(_POINTS, np.int32)
    right, bottom = np.int32(x_end), np.int32(y_end)
    for first in range(0, x0.size, _POINTS):
        n = min(_POINTS, x0.size - first)
        x[:n] = x0[first : first + n]
        y[:n] = y0[first : first + n]
        for k in range(fields.shape[0] - 1, -1, -1):
            field = fields[k].reshape(fields.shape[1] * fields.shape[2])
            for i in range(n):  # 32 quarter pixels to a block
                where[i] = np.uint32(np.int32(np.int32(y[i] >> 5) * columns) + np.int32(x[i] >> 5))
            for i in range(n):
                found[i] = field[where[i]]
            for i in range(n):
                # numba widens plain int32 arithmetic, hence the explicit types.
                to_x = np.int32(x[i] + np.int32(np.int16(found[i])))
                to_y = np.int32(y[i] + np.int32(found[i] >> 16))
                x[i] = min(max(to_x, np.int32(0)), right)
                y[i] = min(max(to_y, np.int32(0)), bottom)
        for i in range(n):
            out[first + i, 0] = min(max(x[i] - x0[first + i], -_LIMIT), _LIMIT)
            out[first + i, 1] = min(max(y[i] - y0[first + i], -_LIMIT), _LIMIT)


class MotionWindow:
    """The per-frame motion fields between two slots, and the motion that they add up to.

    Fusing follows single points instead of adding fields: each output cell's centre is traced back frame by frame at
    quarter-pixel precision to where it was at the window's start (paper, Sec. 3.2: accumulated displacements).

    Args:
        width, height: picture size, pixels.
        side: side of the model's square input, pixels.
        cell_px: side of an output cell in model pixels.
        capacity: fields kept before the oldest ones are composed into one, which bounds memory for slow grids.
    """

    def __init__(self, width: int, height: int, side: int, cell_px: int, capacity: int = 128) -> None:
        self.width, self.height = width, height
        rows, columns = -(-height // BLOCK_PX), -(-width // BLOCK_PX)
        self._fields = np.zeros((capacity, rows, columns), np.int32)  # packed, see `_pack`
        self._x_end, self._y_end = width * SUBPEL - 1, height * SUBPEL - 1
        self._cells = side // cell_px
        centre = (np.arange(self._cells) + 0.5) * cell_px / side
        x = np.minimum(centre * width * SUBPEL, self._x_end).astype(np.int32)
        y = np.minimum(centre * height * SUBPEL, self._y_end).astype(np.int32)
        self._cell_x, self._cell_y = (grid.ravel() for grid in np.meshgrid(x, y))
        self.count = 0
        self.vectors = 0

    def clear(self) -> None:
        """Begin a new window: what comes next is relative to the slot just taken."""
        self.count = 0
        self.vectors = 0

    def add(self, frame: av.VideoFrame, *, usable: bool = True) -> None:
        """Append the motion of one frame relative to the frame before it.

        Intra blocks of a P-frame count as unmoved. A whole I-frame says nothing about motion: what moved before it is
        taken to move on.
        """
        if self.count == len(self._fields):
            self._compose()
        field = self._fields[self.count]
        self.count += 1
        data = side_data(frame) if usable else None
        if data is None and usable and self.count > 1 and frame.pict_type == PictureType.I:
            field[:] = self._fields[self.count - 2]
        elif data is None:
            field[:] = 0
        else:
            self.vectors += _rasterise(np.frombuffer(data, np.int32).reshape(-1, _WORDS), field)

    def shorten(self, share: float) -> None:
        """Keep this share of the last frame's motion: the window begins between that frame and the one before it."""
        components = self._fields[self.count - 1].view(np.int16)
        components[:] = np.rint(components * share)

    def fuse(self) -> npt.NDArray[np.int16]:
        """The window's motion: int16 (C, C, 2), (x, y) = source minus destination, quarter pixels of the picture."""
        motion = np.empty((self._cells, self._cells, 2), np.int16)
        self._trace(self._cell_x, self._cell_y, motion)
        return motion

    def _trace(self, x: npt.NDArray[np.int32], y: npt.NDArray[np.int32], out: npt.NDArray[np.int16]) -> None:
        _trace_back(self._fields[: self.count], x, y, self._x_end, self._y_end, out.reshape(-1, 2))

    def _compose(self) -> None:
        """Replace all fields by one that leads from now to the window's start, traced at the block centres."""
        rows, columns = self._fields.shape[1:]
        x = np.minimum(np.arange(columns, dtype=np.int32) * 32 + 16, self._x_end)
        y = np.minimum(np.arange(rows, dtype=np.int32) * 32 + 16, self._y_end)
        block_x, block_y = (grid.ravel() for grid in np.meshgrid(x, y))
        composed = np.empty((rows, columns, 2), np.int16)
        self._trace(block_x, block_y, composed)
        self._fields[0] = composed.view(np.int32)[..., 0]  # x first, as `_pack` lays it
        self.count = 1
