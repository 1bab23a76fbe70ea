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

from cope_codec.index import Source, open_container, video_stream

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
_WORDS = 20  # int16 words of a record
BLOCK_PX = 8  # side of a grid block: the smallest partition that FFmpeg exports
SUBPEL = 4  # fields count quarter pixels
_LIMIT = 32767  # symmetric, so that turning a picture can negate a vector


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
    """Past vectors onto 8-pixel blocks; returns how many records counted. `field` is overwritten."""
    rows, columns = field.shape[0], field.shape[1]
    field[:] = 0
    used = 0
    for i in range(records.shape[0]):
        if records[i, 0] >= 0:
            continue
        used += 1
        mx = np.int32(records[i, 12])
        my = np.int32(records[i, 14])
        if mx == 0 and my == 0:
            continue
        scale = np.int32(records[i, 16])
        if scale == 2:
            mx *= 2
            my *= 2
        elif scale != 4 and scale > 0:
            mx = mx * 4 // scale
            my = my * 4 // scale
        width = records[i, 2] & 0xFF
        height = (records[i, 2] >> 8) & 0xFF
        x0 = (records[i, 5] - (width >> 1)) >> 3
        y0 = (records[i, 6] - (height >> 1)) >> 3
        for y in range(max(y0, 0), min(y0 + max(height >> 3, 1), rows)):
            for x in range(max(x0, 0), min(x0 + max(width >> 3, 1), columns)):
                field[y, x, 0] = min(max(mx, -32768), 32767)
                field[y, x, 1] = min(max(my, -32768), 32767)
    return used


@nb.njit(cache=True, nogil=True, error_model="numpy")
def _trace_back(fields, count, x, y, x_end, y_end):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Move every point back through `count` fields, newest first. Frames outermost: the points then run in parallel."""
    points = x.size
    rows, columns = fields.shape[1], fields.shape[2]
    for k in range(count - 1, -1, -1):
        field = fields[k].reshape(rows * columns)
        for i in range(points):
            xi = x[i]
            yi = y[i]
            packed = field[(yi >> 5) * columns + (xi >> 5)]  # 32 quarter pixels to a block
            # One 32-bit load fetches both components; numba widens plain int32 shifts, hence the explicit int16.
            xi += np.int32(np.int16(packed & 0xFFFF))
            yi += np.int32(packed >> 16)
            x[i] = min(max(xi, 0), x_end)
            y[i] = min(max(yi, 0), y_end)


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
        self._fields = np.zeros((capacity, rows, columns, 2), np.int16)
        self._packed = self._fields.view(np.int32)[..., 0]
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
            self.vectors += _rasterise(np.frombuffer(data, np.int16).reshape(-1, _WORDS), field)

    def shorten(self, share: float) -> None:
        """Keep this share of the last frame's motion: the window begins between that frame and the one before it."""
        field = self._fields[self.count - 1]
        field[:] = np.rint(field * share)

    def fuse(self) -> npt.NDArray[np.int16]:
        """The window's motion: int16 (C, C, 2), (x, y) = source minus destination, quarter pixels of the picture."""
        x, y = self._cell_x.copy(), self._cell_y.copy()
        _trace_back(self._packed, self.count, x, y, self._x_end, self._y_end)
        motion = np.stack((x - self._cell_x, y - self._cell_y), axis=-1)
        return np.clip(motion, -_LIMIT, _LIMIT).astype(np.int16).reshape(self._cells, self._cells, 2)

    def _compose(self) -> None:
        """Replace all fields by one that leads from now to the window's start, traced at the block centres."""
        rows, columns = self._packed.shape[1:]
        x = np.minimum(np.arange(columns, dtype=np.int32) * 32 + 16, self._x_end)
        y = np.minimum(np.arange(rows, dtype=np.int32) * 32 + 16, self._y_end)
        block_x, block_y = (grid.ravel() for grid in np.meshgrid(x, y))
        to_x, to_y = block_x.copy(), block_y.copy()
        _trace_back(self._packed, self.count, to_x, to_y, self._x_end, self._y_end)
        composed = np.stack((to_x - block_x, to_y - block_y), axis=-1)
        self._fields[0] = np.clip(composed, -_LIMIT, _LIMIT).reshape(rows, columns, 2)
        self.count = 1
