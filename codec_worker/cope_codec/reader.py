"""Decodes ranges of packets, seeking where that is shorter than reading on."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType

import av
import av.error
import numpy as np
import numpy.typing as npt
from av.codec.context import Flags2
from av.packet import Packet

from cope_codec.index import PacketIndex, Source, open_container

# Reading on is cheaper than a seek for this many packets: demuxing one takes microseconds.
_READ_ON_PACKETS = 250


class FrameReader:
    """One open container and its decoder; a context manager.

    Args:
        source: the path or bytes that `index` was read from.
        index: its packets.
        vectors: export motion vectors with each frame.
        threads: decoder threads (slices); 1 leaves parallelism to the caller.
    """

    def __init__(self, source: Source, index: PacketIndex, *, vectors: bool, threads: int = 1) -> None:
        self._index = index
        self._container = open_container(source)
        stream = self._container.streams[index.info.stream]
        assert isinstance(stream, av.VideoStream)
        self._stream = stream
        context = self._stream.codec_context
        # Slices, never frames: with frame threads FFmpeg exports wrong vectors for B-frames.
        context.thread_type = "SLICE"
        context.thread_count = threads
        if vectors:
            context.flags2 |= Flags2.export_mvs
        self._context = context
        self._demux = self._container.demux(self._stream)
        self._next = 0
        self._by_pts: dict[int, int] | None = None
        self._pushed = vectors and index.info.codec != "h264"
        self._used = False
        self.errors = 0

    def __enter__(self) -> FrameReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the file and the decoder."""
        self._container.close()

    def read(self, first: int, last: int, wanted: npt.NDArray[np.bool_]) -> Iterator[av.VideoFrame]:
        """Decode packets `first` to `last` (both included) and yield their frames in display order.

        Packets that are not `wanted` are decoded only if other frames build on them. A damaged packet costs its own
        frame and adds to `errors`.

        Args:
            first: a keyframe, position in decode order.
            last: position in decode order.
            wanted: bool (N,), by position in decode order.
        """
        context = self._context
        if self._used:
            context.flush_buffers()  # a drained decoder takes no packets, and the caller may have left half-way
        self._used = True
        opener: Packet[av.VideoStream] | None = None
        for number, packet in self._packets(first, last):
            opener = packet if opener is None else opener
            context.skip_frame = "DEFAULT" if wanted[number] else "NONREF"
            if packet.pts is None or self._index.synthetic:
                packet.pts = int(self._index.pts[number])
            try:
                yield from context.decode(packet)
            except av.error.FFmpegError:
                self.errors += 1
        try:
            if self._pushed and opener is not None:
                # The MPEG decoders hold back one frame, and draining gives it without its vectors. Another packet
                # makes them hand it out whole; the keyframe of this range is at hand, and its second frame is dropped.
                yield from (frame for frame in context.decode(opener) if frame.pts != opener.pts)
            else:
                yield from context.decode(None)
        except av.error.FFmpegError:
            self.errors += 1

    def _packets(self, first: int, last: int) -> Iterator[tuple[int, Packet[av.VideoStream]]]:
        if not self._next <= first <= self._next + _READ_ON_PACKETS:
            self._seek(first)
        try:
            for packet in self._demux:
                if packet.size == 0:
                    continue
                number = self._next
                self._next += 1
                if number >= first:
                    yield number, packet
                if number >= last:
                    return
        except av.error.FFmpegError:
            self.errors += 1

    def _seek(self, packet: int) -> None:
        """Stand at or before `packet`, by timestamp; formats that cannot are read from their start."""
        if not self._index.synthetic:
            # Transport streams land late, so aim earlier until the landing place is early enough.
            second = round(1 / self._index.info.time_base)
            for back in (0, second, 10 * second):
                landed = self._seek_to(int(self._index.pts[packet]) - back)
                if landed is not None and landed <= packet:
                    return
        self._reopen()

    def _seek_to(self, pts: int) -> int | None:
        """Seek and return the position of the packet that comes next, or None if it cannot be told."""
        try:
            self._container.seek(pts, stream=self._stream, backward=True)
            self._demux = self._container.demux(self._stream)
            packet = next((packet for packet in self._demux if packet.size), None)
        except av.error.FFmpegError:
            return None
        if packet is None:
            return None
        if self._by_pts is None:
            values, counts = np.unique(self._index.pts, return_counts=True)
            unique = set(values[counts == 1].tolist())
            self._by_pts = {value: i for i, value in enumerate(self._index.pts.tolist()) if value in unique}
        stamp = packet.pts if packet.pts is not None else packet.dts
        landed = None if stamp is None else self._by_pts.get(stamp)
        if landed is None:
            return None
        # The packet that told the place is used up: go back to it by starting the demuxer there again.
        try:
            self._container.seek(pts, stream=self._stream, backward=True)
        except av.error.FFmpegError:
            return None
        self._demux = self._container.demux(self._stream)
        self._next = landed
        return landed

    def _reopen(self) -> None:
        self._container.seek(0, backward=True, any_frame=False)
        self._demux = self._container.demux(self._stream)
        self._next = 0
