"""Decodes ranges of packets, seeking where that is shorter than reading on."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType

import av
import av.container
import av.error
import numpy as np
import numpy.typing as npt
from av.codec.context import Flags2
from av.packet import Packet

from cope_codec.container import Source, open_container
from cope_codec.index import PacketIndex, digest
from cope_codec.limits import DEFAULT_LIMITS

# Reading on is cheaper than a seek for this many packets: demuxing one takes microseconds.
_READ_ON_PACKETS = 250

# Colour matrices (ISO/IEC 23091-2) and ranges that FFmpeg's scaler knows; it raises for YCgCo or constant luminance.
_MATRICES = frozenset({0, 1, 2, 4, 5, 6, 7, 9})
_UNSPECIFIED = 2
_RANGES = frozenset({0, 1, 2})


class FrameReader:
    """One open container and its decoder; a context manager.

    Args:
        source: the path or bytes.
        container: the same, open, wherever it stands; closed with the reader.
        index: its packets.
        vectors: export motion vectors with each frame.
        threads: decoder threads (slices); 1 leaves parallelism to the caller.
    """

    def __init__(
        self,
        source: Source,
        container: av.container.InputContainer,
        index: PacketIndex,
        *,
        vectors: bool,
        threads: int = 1,
    ) -> None:
        self._source, self._index = source, index
        self._vectors, self._threads = vectors, threads
        self._pushed = vectors and index.info.codec != "h264"
        self._by_pts: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None
        self._damaged = False
        self._attach(container)
        self._next: int | None = None  # the packet that the demuxer will give next; None is unknown

    def _attach(self, container: av.container.InputContainer) -> None:
        stream = container.streams[self._index.info.stream]
        assert isinstance(stream, av.VideoStream)
        context = stream.codec_context
        # Slices, never frames: with frame threads FFmpeg exports wrong vectors for B-frames.
        context.thread_type = "SLICE"
        context.thread_count = self._threads
        # A stream can change its picture size on the way; the cap given to `av.open` holds for the probe alone.
        context.options = {"max_pixels": str(DEFAULT_LIMITS.max_pixels)}
        if self._vectors:
            context.flags2 |= Flags2.export_mvs
        # Before any `skip_frame`: AV1's decoder looks at it here and never again.
        context.open(strict=False)
        self._container, self._stream, self._context = container, stream, context
        self._demux = container.demux(stream)
        self._used = False

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
        frame and is told by `damaged`.

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
        opened = False  # the opener's own frame has come out
        told: bool | None = None  # what the decoder was told last: telling it takes a microsecond
        for number, packet in self._packets(first, last):
            opener = packet if opener is None else opener
            if wanted[number] != told:
                told = bool(wanted[number])
                context.skip_frame = "DEFAULT" if told else "NONREF"
            if packet.pts is None or self._index.synthetic:
                packet.pts = int(self._index.pts[number])
            try:
                for frame in context.decode(packet):
                    opened |= frame.pts == opener.pts
                    yield _convertible(frame)
            except av.error.FFmpegError as error:
                self._note(error)
        try:
            if self._pushed and opener is not None:
                # The MPEG decoders hold back one frame, and draining gives it without its vectors. Another packet
                # makes them hand it out whole; the keyframe of this range is at hand, and its second frame is dropped.
                closing = [frame for frame in context.decode(opener) if frame.pts != opener.pts or not opened]
            else:
                closing = context.decode(None)
            yield from map(_convertible, closing)
        except av.error.FFmpegError as error:
            self._note(error)

    def damaged(self) -> bool:
        """Whether a packet could not be read or decoded since this was asked last."""
        damaged, self._damaged = self._damaged, False
        return damaged

    def _note(self, error: av.error.FFmpegError) -> None:
        """Remember damage; a lack of memory says nothing about the video, and must not become a grey picture."""
        if isinstance(error, MemoryError):
            raise error
        self._damaged = True

    def _packets(self, first: int, last: int) -> Iterator[tuple[int, Packet[av.VideoStream]]]:
        if self._next is None or not self._next <= first <= self._next + _READ_ON_PACKETS:
            self._next = self._seek(first)
        try:
            for packet in self._demux:
                if packet.size == 0:
                    continue
                number = self._next
                self._next = number + 1
                if number >= first:
                    yield number, packet
                if number >= last:
                    return
        except av.error.FFmpegError as error:
            self._note(error)

    def _seek(self, packet: int) -> int:
        """Stand at or before `packet` and return where; formats that cannot tell are read from their start."""
        if not self._index.synthetic:
            # Transport streams land late, so aim earlier until the landing place is early enough.
            second = round(1 / self._index.info.time_base)
            for back in (0, second, 10 * second):
                landed = self._seek_to(int(self._index.pts[packet]) - back)
                if landed is not None and landed <= packet:
                    return landed
        self._container.close()
        self._attach(open_container(self._source))
        return 0

    def _seek_to(self, pts: int) -> int | None:
        """Seek and return the position of the packet that comes next, or None if it cannot be told."""
        try:
            self._container.seek(pts, stream=self._stream, backward=True)
            packet = next((packet for packet in self._container.demux(self._stream) if packet.size), None)
            # The packet that told the place is used up: go back to it.
            self._container.seek(pts, stream=self._stream, backward=True)
        except av.error.FFmpegError:
            return None
        self._demux = self._container.demux(self._stream)
        if packet is None:
            return None
        stamp = packet.pts if packet.pts is not None else packet.dts
        landed = None if stamp is None else self._position(stamp)
        if landed is None or not self._index.digests[landed].any():
            return landed  # an MP4 that was not read whole: it lands where its times say
        # Program streams can land in the middle of a frame, and damaged files anywhere.
        return landed if digest(packet) == self._index.digests[landed].tobytes() else None

    def _position(self, pts: int) -> int | None:
        """The packet with this timestamp, unless none or several have it."""
        if self._by_pts is None:
            # Sorted arrays: a dictionary of eight hours would take 100 MB.
            order = np.argsort(self._index.pts, kind="stable")
            self._by_pts = self._index.pts[order], order
        stamps, order = self._by_pts
        low, high = np.searchsorted(stamps, pts), np.searchsorted(stamps, pts, side="right")
        return int(order[low]) if high - low == 1 else None


def _convertible(frame: av.VideoFrame) -> av.VideoFrame:
    """The frame, its colours declared unspecified where they would make the conversion to RGB fail."""
    if frame.colorspace not in _MATRICES:
        frame.colorspace = _UNSPECIFIED
    if frame.color_range not in _RANGES:
        frame.color_range = 0
    return frame
