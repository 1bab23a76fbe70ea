"""Time in exact arithmetic: a clip's frames, the cells that slots are taken from, the paper's constant frame rate."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt

from cope_codec.errors import CodecError
from cope_codec.index import PacketIndex
from cope_codec.options import ENCODED_FPS, VideoOptions, frames_per_slot


def ticks(seconds: float | None, time_base: Fraction) -> int:
    """Seconds in ticks, rounded up: the first tick that is not earlier."""
    if seconds is None:
        return 0
    exact = Fraction(seconds).limit_denominator(1_000_000) / time_base
    return -(-exact.numerator // exact.denominator)


def cells(offset: npt.NDArray[np.int64], time_base: Fraction, fps: float) -> npt.NDArray[np.int64]:
    """Grid cell of each timestamp: floor(offset * time_base * fps), in exact arithmetic."""
    rate = time_base * Fraction(fps).limit_denominator(100_000)
    wide = offset.astype(object) if int(offset.max(initial=0)) * rate.numerator > 2**62 else offset
    return np.asarray(wide * rate.numerator // rate.denominator, np.int64)


def first_of_cells(
    index: PacketIndex, packets: npt.NDArray[np.int64], origin: int, fps: float
) -> npt.NDArray[np.int64]:
    """The first packet of each cell of the grid that starts at `origin`; `packets` are in time order."""
    numbers = cells(index.pts[packets] - origin, index.info.time_base, fps)
    chosen: npt.NDArray[np.int64] = packets[np.concatenate(([True], np.diff(numbers) > 0))]
    return chosen


def frames_in_clip(index: PacketIndex, options: VideoOptions) -> npt.NDArray[np.int64]:
    """Packets of the frames shown between `start_s` and `end_s`, in time order, one for each time.

    Raises:
        CodecError: `no_frames` when there are none.
    """
    offset = index.pts - index.start_pts
    inside = index.shown.copy()
    if options.start_s is not None:
        inside &= offset >= ticks(options.start_s, index.info.time_base)
    if options.end_s is not None:
        inside &= offset < ticks(options.end_s, index.info.time_base)
    shown = np.flatnonzero(inside)
    if not len(shown):
        raise CodecError(
            "no_frames", "no frame lies between start_s and end_s", param="start_s" if options.start_s else "end_s"
        )
    by_time = shown[np.argsort(index.pts[shown], kind="stable")]
    # Damaged files show several frames at one time: no slot may, so the first of them stands for all.
    single: npt.NDArray[np.int64] = by_time[np.concatenate(([True], np.diff(index.pts[by_time]) > 0))]
    return single


def clip_end(index: PacketIndex, options: VideoOptions) -> int:
    """Time at which the clip's last frame stops being shown, ticks."""
    if options.end_s is None:
        return index.end_pts
    return min(index.end_pts, index.start_pts + ticks(options.end_s, index.info.time_base))


class ConstantRate:
    """A clip at the paper's 30 frames per second: which frame of the source stands at each place.

    Place n is shown n / 30 s after the clip's first frame. As FFmpeg's `fps` filter does it, a frame goes to the place
    nearest to its time; of several frames that come to one place the last is taken, and a place to which none comes
    repeats the frame before it.

    Args:
        index: the packets.
        options: the clip, and slots per second that divide 30.
    """

    def __init__(self, index: PacketIndex, options: VideoOptions) -> None:
        self._frames = frames_in_clip(index, options)
        self.origin_pts = int(index.pts[self._frames[0]])
        self._time_base = index.info.time_base
        self._start_s = float((self.origin_pts - index.start_pts) * self._time_base)
        self._places = self._place(index.pts[self._frames] - self.origin_pts)
        end = self._place(np.array([clip_end(index, options) - self.origin_pts], np.int64))
        self.places = max(int(self._places[-1]) + 1, int(end[0]))
        self.step = frames_per_slot(options.fps)

    def _place(self, offset: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """floor(30 t + 1/2)."""
        return (cells(offset, self._time_base, 2.0 * ENCODED_FPS) + 1) // 2

    @property
    def slots(self) -> int:
        """Slots of the clip, one at every `step` places."""
        return -(-self.places // self.step)

    def packets(self, first: int, count: int, step: int = 1) -> npt.NDArray[np.int64]:
        """Packets of the frames at `count` places from `first` on, every `step`-th: int64 (count,), in time order."""
        wanted = np.arange(first, first + count * step, step)
        chosen: npt.NDArray[np.int64] = self._frames[np.searchsorted(self._places, wanted, side="right") - 1]
        return chosen

    def time_s(self, place: int) -> float:
        """When a place is shown, seconds from the video's first frame."""
        return self._start_s + place / ENCODED_FPS

    def closes_pts(self, place: int) -> int:
        """The first time, ticks, whose frame comes to a later place than this one."""
        exact = Fraction(2 * place + 1, 2 * ENCODED_FPS) / self._time_base
        return self.origin_pts - (-exact.numerator // exact.denominator)
