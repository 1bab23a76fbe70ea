"""vLLM's way to our videos: a video loader that hands out GOPs of primitives where others hand out frames."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm.multimodal.video import VIDEO_LOADER_REGISTRY, VideoLoader

from cope_model import isolation

# cope_codec is imported where it is used: this module is loaded in every vLLM process, also in the workers.
if TYPE_CHECKING:
    from cope_codec import Video
    from cope_codec.options import VideoOptions
    from cope_codec.plan import VideoPlan
    from cope_codec.primitives import GopPrimitives
    from cope_model.extraction import Extraction

BACKEND = "cope"
VIDEO_PROCESSOR = "CoPEVideoProcessor"  # preprocessor_config.json names it; vLLM chooses the loader by it


@dataclass(frozen=True, slots=True)
class Known:
    """What holds for a file and some options, however often it is opened.

    Attributes:
        plan: slots and GOPs; knows every token.
        length_s: of the whole video, of which options may have chosen a part, seconds: the times of slots lie within.
        truncated: the file breaks off before its announced end.
    """

    plan: VideoPlan
    length_s: float
    truncated: bool

    @classmethod
    def of(cls, video: Video) -> Known:
        """What an opened video tells."""
        return cls(video.plan, video.length_s, video.truncated)


@dataclass(frozen=True, repr=False)
class VideoGops:
    """A video on its way to the processor.

    Attributes:
        known: its plan and length.
        video: the indexed video; None where it did not have to be opened.
        gops: its primitives, or None if the loader was not told the model's side; the parser extracts them then.
        extract_s: seconds spent so far on indexing and extraction.
        salt: whose caches it may be found in (`isolation`); None is everybody's.
        cached: an executor's workers had nothing to decode: the cache had every GOP.
    """

    known: Known
    video: Video | None
    gops: tuple[GopPrimitives, ...] | None
    extract_s: float
    salt: str | None = None
    cached: bool = False

    @property
    def plan(self) -> VideoPlan:
        """Slots and GOPs of the video."""
        return self.known.plan

    def extracted(self, side: int) -> tuple[GopPrimitives, ...]:
        """The primitives for a model of that side, pixels; extracts them unless they are there."""
        if self.gops is not None:
            return self.gops
        assert self.video is not None, "only what is cached as a whole need not be opened"
        return extract(self.video, side)

    def __repr__(self) -> str:
        state = "planned" if self.gops is None else "extracted"
        return f"VideoGops({len(self.plan.gops)} GOPs, {state}, {self.plan.mode})"


def extract(video: Video, side: int) -> tuple[GopPrimitives, ...]:
    """All GOPs of a video, through the process-wide cache of primitives.

    Raises:
        CodecError: a GOP cannot be decoded.
    """
    from cope_codec import cache

    gops: Sequence[GopPrimitives] = cache.extract(video, side)
    return tuple(gops)


def load(
    source: str | Path | bytes,
    *,
    side: int | None = None,
    options: VideoOptions | Mapping[str, Any] | None = None,
    check: Callable[[VideoPlan], None] | None = None,
) -> VideoGops:
    """Index a video and, if the model's side is known, extract its primitives.

    Args:
        source: path of a file, or the bytes of one.
        side: S, side of the model's square input, pixels.
        options: how to cut the video; None is the defaults.
        check: called with the plan before anything is decoded; what it raises stops the loading.

    Raises:
        CodecError: the video or an option cannot be used.
    """
    import cope_codec
    from cope_codec.options import VideoOptions

    start = time.perf_counter()
    if isinstance(options, Mapping):
        options = VideoOptions.from_mapping(options)
    video = cope_codec.open(source, options)
    if check is not None:
        check(video.plan)
    gops = None if side is None else extract(video, side)
    return VideoGops(Known.of(video), video, gops, time.perf_counter() - start)


async def load_async(
    source: str | Path | bytes,
    extraction: Extraction,
    *,
    name: str | None = None,
    side: int | None = None,
    options: VideoOptions | Mapping[str, Any] | None = None,
    check: Callable[[VideoPlan], None] | None = None,
    turn: Callable[..., AbstractAsyncContextManager[None]] | None = None,
    **defaults: Any,
) -> tuple[VideoGops, dict[str, Any]]:
    """`load_source` by an executor's workers; cancelling the coroutine frees them.

    Args:
        source: path of a file, or the bytes of one.
        extraction: the executor in charge.
        name: stands for these bytes and no others, ever. A video whose plan is remembered by it and whose primitives
            are all cached is not opened again: indexing an hour takes longer than all else about such a question.
        side: S, side of the model's square input, pixels; None is the one that the executor was installed for.
        options: how to cut the video; None is the defaults.
        check: called with the plan before anything is decoded; what it raises stops the loading.
        turn: called with the clip's length in seconds, the pixels to decode of it and `at_once`, whether the cache has
            everything already; what it returns is entered while GOPs are decoded.
        defaults: single options by name; `options` win.

    Raises:
        CodecError: the video or an option cannot be used, or the workers could not do it (`queue_full`, `timeout`,
            `out_of_memory`, `worker_died`, `cancelled`).
    """
    from cope_codec.extract import primitives_key
    from cope_codec.groups import decoded_packets

    start = time.perf_counter()
    chosen = merged(options, defaults)
    salt = isolation.current.get()
    side = extraction.side if side is None else side
    known = None if name is None else extraction.known.get((name, chosen))
    if known is not None:
        if check is not None:
            check(known.plan)
        found = extraction.flights.kept(known.plan, side, salt or "")
        if found is not None:
            async with nullcontext() if turn is None else turn(known.plan.seconds, 0, at_once=True):
                loaded = VideoGops(known, None, tuple(found), time.perf_counter() - start, salt, cached=True)
            return loaded, _metadata(loaded)
    video = await extraction.executor.open_async(source, chosen)
    if check is not None and known is None:
        check(video.plan)
    known = Known.of(video)
    if name is not None:
        extraction.known.put((name, chosen), known)
    store = extraction.flights.store
    cached = all(store.peek((salt or "") + primitives_key(gop, side)) is not None for gop in video.plan.gops)
    pixels = decoded_packets(video.plan.gops) * video.info.width * video.info.height
    async with nullcontext() if turn is None else turn(video.plan.seconds, pixels, at_once=cached):
        gops = await extraction.flights.extract(video, side, salt or "")
    loaded = VideoGops(known, video, tuple(gops), time.perf_counter() - start, salt, cached)
    return loaded, _metadata(loaded)


@VIDEO_LOADER_REGISTRY.register(BACKEND, video_processor=VIDEO_PROCESSOR)
class CoPEVideoLoader(VideoLoader):  # type: ignore[misc]
    """The loader as vLLM sees it; `--media-io-kwargs '{"video": {"side": 384}}'` makes it extract at once.

    vLLM chooses it by the model's preprocessor_config.json; where that is missing, as in LLaVA-Video's published files,
    by `"video_backend": "cope"` in the same option.
    """

    @classmethod
    def load_bytes(
        cls,
        data: bytes,
        num_frames: int = -1,
        *,
        side: int | None = None,
        options: VideoOptions | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> tuple[VideoGops, dict[str, Any]]:
        """Load a video from its bytes.

        Args:
            data: a whole file.
            num_frames: ignored; vLLM always sends one (32). Dense input is asked for by the option `frames`.
            side: S, side of the model's square input, pixels; None leaves extraction to the processor.
            options: how to cut the video.
            kwargs: single options by name, as in `--media-io-kwargs '{"video": {"fps": 2}}'`; `options` win, also
                where one kind of input, dense or codec, excludes the other's.

        Returns:
            The video and metadata for vLLM.

        Raises:
            CodecError: the video or an option cannot be used.
        """
        return load_source(data, side=side, options=options, **kwargs)


def load_source(
    source: str | Path | bytes,
    *,
    side: int | None = None,
    options: VideoOptions | Mapping[str, Any] | None = None,
    check: Callable[[VideoPlan], None] | None = None,
    **defaults: Any,
) -> tuple[VideoGops, dict[str, Any]]:
    """`CoPEVideoLoader.load_bytes` for paths too."""
    loaded = load(source, side=side, options=merged(options, defaults), check=check)
    return loaded, _metadata(loaded)


def merged(options: VideoOptions | Mapping[str, Any] | None, defaults: Mapping[str, Any]) -> VideoOptions:
    """The server's options, and those of the request before them.

    Args:
        options: of the request.
        defaults: the server's, by name; those that contradict the request's give way.

    Raises:
        CodecError: `invalid_option`.
    """
    from cope_codec.options import VideoOptions

    if isinstance(options, VideoOptions) and not defaults:
        return options
    given = options.to_mapping() if isinstance(options, VideoOptions) else dict(options or {})
    return VideoOptions.from_mapping({**_giving_way(defaults, given), **given})


def _metadata(loaded: VideoGops) -> dict[str, Any]:
    """What vLLM wants to know of a video."""
    return {"video_backend": BACKEND, "total_num_frames": loaded.plan.frames, "duration": loaded.plan.seconds}


def _giving_way(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The server's defaults without those that contradict what a request asks for."""
    from cope_codec.options import GRID_OPTIONS

    out = dict(defaults)
    if any(name in given for name in GRID_OPTIONS):
        out.pop("frames", None)
    if "frames" in given:
        out = {name: value for name, value in out.items() if name not in GRID_OPTIONS}
    return out
