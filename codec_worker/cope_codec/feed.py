"""Growing input: bytes go in as they arrive, GOPs come out as soon as nothing that follows can change them."""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path
from types import TracebackType

from cope_codec.errors import CodecError
from cope_codec.index import read_index
from cope_codec.options import VideoOptions
from cope_codec.plan import GopPlan, make_plan
from cope_codec.primitives import GopPrimitives
from cope_codec.video import MODEL_SIDE, Video, check_side, undecodable

# The packets received are read again each time that the input has grown by a part of itself, so that the whole work
# stays in proportion to the input, whatever the size of the pieces.
_LEAST_BYTES = 64 * 1024
_GROWTH = 16


class VideoFeed:
    """Takes a video's bytes piece by piece and gives its GOPs; a context manager.

    What comes out is what `cope_codec.open` gives of the whole file: the same keys, the same arrays, in time order.
    Transport streams, Matroska and WebM, fragmented MP4 and raw streams give GOPs on the way. A plain MP4 has its
    index at its end, or promises packets that are not there yet; such files give theirs in `finish`.

    The bytes are kept in a temporary file, for a container can only be read from its start.

    Args:
        options: how to cut the video. `max_gops` does not apply: what is still to come cannot be sampled. Mode `paper`
            repeats frames through a gap, so one piece that ends a gap of an hour gives 450 GOPs at once.
        side: S, side of the model's square input, pixels.

    Raises:
        CodecError: `invalid_option` for `frames`, which are spread over a length that is not known yet.

    Example:
        >>> with VideoFeed(VideoOptions(fps=1)) as feed:  # doctest: +SKIP
        ...     for piece in camera:
        ...         for gop in feed.feed(piece):
        ...             print(gop)
        ...     print(feed.finish())
    """

    def __init__(self, options: VideoOptions | None = None, side: int = MODEL_SIDE) -> None:
        check_side(side)
        options = options or VideoOptions()
        if options.frames is not None:
            raise CodecError(
                "invalid_option", "a growing video has no frames to spread dense input over", param="frames"
            )
        self._options = options
        self._side = side
        self._file = tempfile.NamedTemporaryFile(prefix="cope-feed-", suffix=".video")
        self._size = self._read_at = 0
        self._given = 0
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
        self._file.close()

    def feed(self, data: bytes) -> list[GopPrimitives]:
        """Append bytes.

        Returns:
            The GOPs that have become complete, in time order; often none.

        Raises:
            CodecError: `invalid_option`, once it is known what the stream is.
            ValueError: the feed is finished.
        """
        if self._finished:
            raise ValueError("the feed is finished")
        self._file.write(data)
        self._size += len(data)
        if self._size - self._read_at < max(_LEAST_BYTES, self._read_at // _GROWTH):
            return []
        self._file.flush()
        self._read_at = self._size
        try:
            video = self._open()
            return self._take(video, _complete(video))
        except CodecError as error:
            if error.param == "mode":
                raise
            # Too short to be recognised, or for a frame of the clip asked for.
            return []

    def finish(self) -> list[GopPrimitives]:
        """The input has ended.

        Returns:
            All GOPs not given before, in time order.

        Raises:
            CodecError: the input is no video, or cannot be decoded; as `cope_codec.open`.
            ValueError: the feed is finished.
        """
        if self._finished:
            raise ValueError("the feed is finished")
        self._file.flush()
        try:
            video = self._open()
            return self._take(video, len(video.plan.gops))
        finally:
            self.close()

    def _open(self) -> Video:
        source = Path(self._file.name)
        index, container = read_index(source, stream=self._options.stream)
        try:
            return Video(source, index, make_plan(index, self._options, sample=False), [container])
        except CodecError:
            container.close()
            raise

    def _take(self, video: Video, complete: int) -> list[GopPrimitives]:
        new: tuple[GopPlan, ...] = video.plan.gops[self._given : complete]
        taken = list(video.gops(self._side, only=new))
        if taken and all(gop.undecoded for gop in taken):
            # As after a break in a broadcast: they come with the next good one, or at the end.
            if not self._finished and complete < len(video.plan.gops):
                return []
            if not self._given:
                raise undecodable()
        self._given += len(taken)
        return taken


def _complete(video: Video) -> int:
    """How many GOPs from the start no further packet can change."""
    index, gops = video.index, video.plan.gops
    # The last packet may have come in part.
    whole = len(index.pts) - 1
    count = 0
    for gop, following in pairwise(gops):
        # A frame that is still to come may be shown before the next GOP's first slot and take its place, or belong to
        # this GOP. Both are settled when nothing that early can follow.
        settled = following.slots[0].pts < index.settled_pts and gop.closes_pts <= index.settled_pts
        if not settled or gop.last_packet >= whole:
            break
        count += 1
    return count
