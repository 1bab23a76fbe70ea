"""The paper's own primitives: a clip re-encoded at a constant 30 frames per second, read as its codec wrote it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import av
import numpy as np
import numpy.typing as npt

from cope_codec.builder import GopBuilder
from cope_codec.deinterlace import FieldPicker
from cope_codec.grid import ConstantRate
from cope_codec.index import PacketIndex
from cope_codec.motion import MotionWindow
from cope_codec.pictures import Scaler
from cope_codec.plan import GopPlan, VideoPlan
from cope_codec.primitives import CELL_PX, GopPrimitives
from cope_codec.reader import FrameReader
from cope_codec.reencode import PAPER_GOP, Reencoder


class PaperExtractor:
    """Extracts GOPs in paper mode (`VideoOptions.mode`), each by an encoder run of its own.

    Args:
        reader, index, plan: the video.
        side: S, side of the model's square input, pixels.
        encoded: side of the square picture that is encoded, pixels.
    """

    def __init__(self, reader: FrameReader, index: PacketIndex, plan: VideoPlan, side: int, encoded: int) -> None:
        self._reader, self._index = reader, index
        self._rate = ConstantRate(index, plan.options)
        self._encoded = encoded
        self._window = MotionWindow(encoded, encoded, side, CELL_PX)
        self._scaler = Scaler(side)
        self._field = FieldPicker()

    def run(self, gops: Sequence[GopPlan], builder_of: Callable[[GopPlan], GopBuilder]) -> Iterator[GopPrimitives]:
        """Decode GOPs that overlap in one pass.

        Args:
            gops: in time order.
            builder_of: makes an empty GOP.
        """
        wanted = np.zeros(len(self._index.pts), bool)
        for gop in gops:
            wanted[self._schedule(gop)] = True
        runs = (_Run(builder_of(gop), self._index.pts[self._schedule(gop)], self._encoded) for gop in gops)
        run: _Run | None = next(runs)
        for frame in self._reader.read(gops[0].first_packet, max(gop.last_packet for gop in gops), wanted):
            if frame.pts is None:
                continue
            # One frame can be repeated beyond the end of a GOP.
            while run is not None and run.due(frame.pts):
                self._encode(run, frame)
                if run.builder.done:
                    yield run.builder.finish()
                    run = next(runs, None)
            if run is None:
                break
        while run is not None:
            while not run.builder.done:
                run.builder.pad()
            run.builder.corrupt = True
            yield run.builder.finish()
            run = next(runs, None)

    def _schedule(self, gop: GopPlan) -> npt.NDArray[np.int64]:
        """The packets of the frames at every place from the GOP's first slot to its last, in time order."""
        return self._rate.packets(gop.first_place, (len(gop.slots) - 1) * self._rate.step + 1)

    def _encode(self, run: _Run, frame: av.VideoFrame) -> None:
        """Put the frame at the run's next place, which may be a slot."""
        builder, window = run.builder, self._window
        builder.corrupt |= frame.is_corrupt | self._reader.damaged()
        builder.interlaced |= frame.interlaced_frame
        encoded = run.encoder.push(self._field(frame))
        if run.place == 0:
            window.clear()
        elif not builder.next_is_keyframe:
            window.add(encoded)
        if run.place % self._rate.step == 0:
            motion, vectors = None, 0
            if not builder.next_is_keyframe:
                motion, vectors = window.fuse(), window.vectors
            # Its own frame never came: this later one stands in.
            builder.missing += run.pts[run.place] != frame.pts
            builder.put(self._scaler.rgb(encoded), motion, vectors, frame.rotation)
            window.clear()
        run.place += 1


class _Run:
    """One GOP on its way through the encoder.

    Args:
        builder: the GOP.
        pts: int64 (M,), source timestamps of the frames to encode, one per place, repeated where a frame is.
        encoded: side of the encoded picture, pixels.
    """

    def __init__(self, builder: GopBuilder, pts: npt.NDArray[np.int64], encoded: int) -> None:
        self.builder = builder
        self.pts: list[int] = pts.tolist()
        self.encoder = Reencoder(encoded, PAPER_GOP)
        self.place = 0

    def due(self, pts: int) -> bool:
        """The next place shows the frame with this timestamp, or one that should have come before it."""
        return self.pts[self.place] <= pts
