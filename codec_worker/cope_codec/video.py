"""An opened video: its plan is known, its GOPs are decoded while one iterates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from av.container import InputContainer

from cope_codec.container import Source, StreamInfo, open_container
from cope_codec.errors import CodecError
from cope_codec.extract import extract
from cope_codec.groups import decoded_packets
from cope_codec.index import PacketIndex, read_index
from cope_codec.limits import DEFAULT_LIMITS, Limits
from cope_codec.options import VideoOptions
from cope_codec.plan import GopPlan, VideoPlan, make_plan
from cope_codec.primitives import CELL_PX, GopPrimitives
from cope_codec.tables import hash_packets, read_tables

MAX_SIDE = 2048  # a GOP's residuals would take 170 MB
MODEL_SIDE = 384  # SigLIP so400m-patch14-384, the vision encoder of LLaVA-Video


def check_side(side: int) -> None:
    """Refuse a model side that motion cells do not divide.

    Raises:
        ValueError: `side` is not a multiple of 4 within 4..2048.
    """
    if not CELL_PX <= side <= MAX_SIDE or side % CELL_PX:
        raise ValueError(f"side must be a multiple of {CELL_PX} from {CELL_PX} to {MAX_SIDE}, not {side}")


@dataclass(frozen=True, slots=True, eq=False)
class Video:
    """A video whose packets have been read and whose slots are planned.

    Attributes:
        source: the path or the bytes.
        index: its packets.
        plan: its slots and GOPs under the options given to `open`.
    """

    source: Source
    index: PacketIndex
    plan: VideoPlan
    # The container that the index was read from, until the first extraction takes it over.
    _opened: list[InputContainer] = field(default_factory=list, repr=False)

    @property
    def info(self) -> StreamInfo:
        """The video stream."""
        return self.index.info

    @property
    def truncated(self) -> bool:
        """The file breaks off before its announced end (`PacketIndex.truncated`)."""
        return self.index.truncated

    @property
    def length_s(self) -> float:
        """Length of the whole file, seconds, of which options may have chosen a part; `plan.seconds` is that part's."""
        return (self.index.end_pts - self.index.start_pts) * float(self.index.info.time_base)

    def gops(
        self, side: int = MODEL_SIDE, *, only: Sequence[GopPlan] | None = None, threads: int = 1
    ) -> Iterator[GopPrimitives]:
        """Decode and yield GOPs in time order, holding one at a time.

        Args:
            side: S, side of the model's square input, pixels.
            only: the GOPs of `plan` to decode, in time order; None is all.
            threads: decoder threads.

        Raises:
            CodecError: `undecodable_video` at the end of a whole video of which no frame could be decoded.
            ValueError: `side` is not a multiple of 4 within 4..2048.
        """
        check_side(side)
        try:
            container = self._opened.pop()  # one step: two threads never get the same one
        except IndexError:
            container = open_container(self.source)
        chosen = self.plan.gops if only is None else only
        gops = extract(self.source, container, self.index, self.plan, side, chosen, threads=threads)
        return gops if only is not None else some_decoded(gops)

    def __iter__(self) -> Iterator[GopPrimitives]:
        return self.gops()

    def __repr__(self) -> str:
        source = f"{len(self.source)} bytes" if isinstance(self.source, bytes) else str(self.source)
        plan = self.plan
        return (
            f"Video({source}, {self.info.codec} {self.info.width}x{self.info.height}, {plan.seconds:.2f} s, "
            f"{plan.mode}, {len(plan.gops)} GOPs, {plan.i_frames} I + {plan.p_frames} P)"
        )


def some_decoded(gops: Iterator[GopPrimitives]) -> Iterator[GopPrimitives]:
    """Pass on the GOPs of a whole video; raises `undecodable_video` at the end if none of them could be decoded."""
    nothing = True
    for gop in gops:
        nothing &= gop.undecoded
        yield gop
    if nothing:
        raise undecodable()


def undecodable() -> CodecError:
    """The error for a video whose GOPs are all `undecoded`."""
    return CodecError("undecodable_video", "the video stream cannot be decoded: not one of its frames is readable")


def open(
    source: Source, options: VideoOptions | None = None, *, limits: Limits = DEFAULT_LIMITS, **values: Any
) -> Video:
    """Open a video and plan it; nothing is decoded yet.

    Args:
        source: a path, or the bytes of a whole file.
        options: how to cut it; or give the fields of `VideoOptions` as keywords.
        limits: what is too large.

    Raises:
        CodecError: the video or an option cannot be used; see `cope_codec.errors`.
        OSError: the path cannot be read.

    Example:
        >>> for gop in cope_codec.open("clip.mp4", fps=1):  # doctest: +SKIP
        ...     print(gop)
    """
    if options is not None and values:
        raise TypeError("give options or keywords, not both")
    if isinstance(source, str):
        source = Path(source)
    chosen = options or VideoOptions.from_mapping(values)
    index, container = _indexed(source, chosen, limits)
    try:
        plan = make_plan(index, chosen)
        pixels = decoded_packets(plan.gops) * index.info.width * index.info.height
        if pixels > limits.max_decoded_pixels:
            raise CodecError(
                "video_too_large", f"{pixels:.1e} pixels to decode are too many; ask for a shorter clip or fewer GOPs"
            )
        return Video(source, index, plan, [container])
    except CodecError:
        container.close()
        raise


def _indexed(source: Source, options: VideoOptions, limits: Limits) -> tuple[PacketIndex, InputContainer]:
    """The packets, of which only those that a plan needs are read where that is less than half of a long file."""
    found = read_tables(source, limits, stream=options.stream)
    if found is not None:
        index, container = found
        try:
            gops = make_plan(index, options, keyed=False).gops
            few = decoded_packets(gops) * 2 <= len(index.pts)
            ranges = [(gop.first_packet, gop.last_packet) for gop in gops]
            hashed = hash_packets(container, index, ranges) if few else None
        except CodecError:
            container.close()
            raise
        if hashed is not None:
            return hashed, container
        container.close()
    return read_index(source, limits, stream=options.stream)
