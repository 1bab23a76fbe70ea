"""Growing input: bytes go in as they arrive, GOPs come out as soon as nothing that follows can change them."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import TracebackType

from cope_codec.container import open_container
from cope_codec.errors import CodecError
from cope_codec.groups import decoded_packets
from cope_codec.growing import GrowingIndex
from cope_codec.index import PacketIndex, read_index
from cope_codec.limits import DEFAULT_LIMITS, Limits
from cope_codec.options import VideoOptions
from cope_codec.plan import GopPlan, VideoPlan, make_plan
from cope_codec.primitives import GopPrimitives
from cope_codec.video import MODEL_SIDE, Video, check_side, undecodable

# How often the plan is made again while a GOP is overdue: a part of the time between two slots.
_PATIENCE = 0.25
_MOST_HELD = 8  # undecoded GOPs that wait for a good one


class VideoFeed:
    """Takes a video's bytes piece by piece and gives its GOPs; a context manager.

    What comes out is what `cope_codec.open` gives of the whole file: the same keys, the same arrays, in time order.
    Transport and program streams, Matroska and WebM, fragmented MP4, MP4 that begins with its index, and raw streams
    give a GOP once the first slot of the next one has come, and with it all frames that are shown before it. FFmpeg
    wants to see up to 5 s (or 5 MB) of a transport stream before it says what it is. Other files, such as a plain MP4,
    which has its index at its end, give theirs in `finish`.

    The bytes are kept in a temporary file, for a decoder must go back to a keyframe. A thread, which ends with the
    feed, demuxes and hashes each packet once.

    Args:
        options: how to cut the video. `max_gops` does not apply: what is still to come cannot be sampled. Mode `paper`
            repeats frames through a gap, so one piece that ends a gap of an hour gives 450 GOPs at once.
        side: S, side of the model's square input, pixels.
        limits: what is too large; `max_decoded_pixels` applies to all GOPs together.

    Raises:
        CodecError: `invalid_option` for `frames`, which are spread over a length that is not known yet.

    Example:
        >>> with VideoFeed(VideoOptions(fps=1)) as feed:  # doctest: +SKIP
        ...     for piece in camera:
        ...         for gop in feed.feed(piece):
        ...             print(gop)
        ...     for gop in feed.finish():
        ...         print(gop)
    """

    def __init__(
        self, options: VideoOptions | None = None, side: int = MODEL_SIDE, *, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        check_side(side)
        options = options or VideoOptions()
        if options.frames is not None:
            raise CodecError(
                "invalid_option", "a growing video has no frames to spread dense input over", param="frames"
            )
        self._options, self._side, self._limits = options, side, limits
        self._file = tempfile.NamedTemporaryFile(prefix="cope-feed-", suffix=".video")
        self._growing = GrowingIndex(self._file.file, options.stream, limits)
        self._stop_reading = weakref.finalize(self, self._growing.close)
        self._size = 0
        self._given = self._offered = self._packets_decoded = 0
        self._good = False
        self._due_s = 0.0  # `GrowingIndex.elapsed_s` at which another plan may have a complete GOP
        self._turn = 0  # the call whose iterator is valid
        self._finished = False

    def __enter__(self) -> VideoFeed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Forget the bytes; also happens when the feed is garbage."""
        self._finished = True
        self._turn += 1
        self._stop_reading()
        self._file.close()

    def feed(self, data: bytes) -> Iterator[GopPrimitives]:
        """Append bytes, at once; what can be given is decoded while one iterates.

        Returns:
            The GOPs that have become complete, in time order; often none. Those that are not taken before the next call
            come with that.

        Raises:
            CodecError: `invalid_option`, once it is known what the stream is, and `video_too_large`.
            ValueError: the feed is finished.
        """
        self._begin_turn()
        if self._size + len(data) > self._limits.max_bytes:
            raise CodecError("video_too_large", f"the video has more than {self._limits.max_bytes} bytes")
        self._file.write(data)
        self._file.flush()
        self._size += len(data)
        known = self._growing.grow(self._size)
        elapsed_s = self._growing.elapsed_s()
        if not known or (elapsed_s < self._due_s and self._given == self._offered):
            return iter(())
        self._due_s = elapsed_s + _PATIENCE / self._options.fps
        try:
            index = self._growing.index()
            plan = make_plan(index, self._options, sample=False)
        except CodecError as error:
            if error.param == "mode":
                raise
            return iter(())  # no frame of the clip asked for has come
        self._offered = _complete(index, plan.gops)
        self._due_s = elapsed_s + self._wait_s(index, plan.gops[self._offered :])
        return self._take(self._turn, index, plan, self._offered)

    def finish(self) -> Iterator[GopPrimitives]:
        """The input has ended. It is read once more as a whole, and the rest is decoded while one iterates.

        Returns:
            All GOPs not given before, in time order. The bytes are forgotten after the last.

        Raises:
            CodecError: the input is no video; as `cope_codec.open`. While one iterates, `undecodable_video` at the end
                of a video of which no frame could be decoded, and `video_too_large`.
            ValueError: the feed is finished.
        """
        self._begin_turn()
        self._finished = True
        try:
            self._stop_reading()
            source = Path(self._file.name)
            index, container = read_index(source, self._limits, stream=self._options.stream)
            try:
                video = Video(source, index, make_plan(index, self._options, sample=False), [container])
            except CodecError:
                container.close()
                raise
        except CodecError:
            self.close()
            raise
        return self._take_rest(self._turn, video)

    def _begin_turn(self) -> None:
        if self._finished:
            raise ValueError("the feed is finished")
        self._turn += 1

    def _wait_s(self, index: PacketIndex, pending: tuple[GopPlan, ...]) -> float:
        """How much more of the stream must come before the first of these GOPs can be complete, seconds."""
        slot_s = 1 / self._options.fps
        wait_s = _PATIENCE * slot_s
        if len(pending) == 1:
            # So many more slots, at the earliest one in each cell of the grid.
            slots, tick_s = pending[0].slots, float(index.info.time_base)
            missing = self._options.gop_slots - len(slots)
            into_cell_s = (slots[-1].time_s - (self._options.start_s or 0.0)) % slot_s
            since_s = (int(index.pts.max()) - slots[-1].pts) * tick_s
            wait_s = max(wait_s, (missing + 1) * slot_s - into_cell_s - since_s)
        return wait_s

    def _take(self, turn: int, index: PacketIndex, plan: VideoPlan, complete: int) -> Iterator[GopPrimitives]:
        """Give the GOPs up to `complete`, but none whose pictures may still come with a later one."""
        new = plan.gops[self._given : complete]
        if not new:
            return
        source = Path(self._file.name)
        video = Video(source, index, plan, [open_container(source, self._limits)])
        follower = plan.gops[complete] if complete < len(plan.gops) else None
        held: list[GopPrimitives] = []
        for gop in self._decoded(turn, video, new):
            held.append(gop)
            # A GOP of which nothing can be decoded, as after a break in a broadcast, shows what comes first of the next
            # one, if both are decoded from the same keyframe on.
            if gop.undecoded and len(held) <= _MOST_HELD:
                continue
            yield from self._give(turn, held)
            held = []
        if follower is None or follower.first_packet > new[-1].last_packet:
            yield from self._give(turn, held)
        elif held:
            self._offered = self._given

    def _take_rest(self, turn: int, video: Video) -> Iterator[GopPrimitives]:
        try:
            for gop in self._decoded(turn, video, video.plan.gops[self._given :]):
                yield from self._give(turn, [gop])
            if turn == self._turn and not self._good:
                raise undecodable()
        finally:
            self.close()

    def _decoded(self, turn: int, video: Video, gops: tuple[GopPlan, ...]) -> Iterator[GopPrimitives]:
        """Decode GOPs, unless a later call has made this one's iterator invalid."""
        if turn != self._turn:
            return
        self._packets_decoded += decoded_packets(gops)
        pixels = self._packets_decoded * video.info.width * video.info.height
        if pixels > self._limits.max_decoded_pixels:
            raise CodecError("video_too_large", f"{pixels:.1e} pixels to decode are too many")
        for gop in video.gops(self._side, only=gops):
            yield gop
            if turn != self._turn:
                return

    def _give(self, turn: int, gops: list[GopPrimitives]) -> Iterator[GopPrimitives]:
        for gop in gops:
            if turn != self._turn:
                return
            self._given += 1
            self._good |= not gop.undecoded
            yield gop


def _complete(index: PacketIndex, gops: tuple[GopPlan, ...]) -> int:
    """How many GOPs from the start no further packet can change."""
    count = 0
    for gop, following in pairwise(gops):
        # A frame that is still to come may be shown before the next GOP's first slot and take its place, or belong to
        # this GOP. Both are settled when nothing that early can follow.
        settled = following.slots[0].pts < index.settled_pts and gop.closes_pts <= index.settled_pts
        if not settled:
            break
        count += 1
    return count
