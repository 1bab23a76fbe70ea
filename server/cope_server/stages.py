"""Where the time to the first token went: stages of a request that follow one another and add up to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cope_model.account import LoadedVideo

# name: what it covers; `docs/metrics.md` prints it
STAGES = {
    "receive": "from the request's first byte until its body has been read",
    "fetch": "a video is being fetched and none is being extracted",
    "extract": "a video is being opened, indexed, waits for a codec worker, or is being decoded",
    "preprocess": "the rest before the hand-over to the engine: parsing, chat template, tokens, multimodal processing",
    "queue": "from the hand-over until the engine schedules the request, with the way to the engine and back",
    "prefill": "from there to the first token; in a stream, until its first content is sent",
}

Interval = tuple[float, float]


@dataclass(slots=True)
class RequestClock:
    """Times of one chat request, and what it carried; times are seconds of `time.perf_counter`.

    Attributes:
        started: the server took up the request; its body may still be on the way.
        received: the body was there.
        handed_over: the engine was asked.
        first_output: this process had the first token from the engine.
        prefill_s: the engine's own count from scheduling to the first token, seconds.
        first_token: the first chunk with content was sent; None before that and for answers in one piece.
        ended: the last byte was sent.
        status: HTTP status; None as long as there is none, or if the client left before.
        input: what the request carried: text, image, codec or dense; None until it is known.
        cache: `warm` if no video had to be decoded, `cold` if one had, `none` without videos.
        videos: the request's videos.
        account: their token account (`usage.video`).
        prompt_tokens: length of the prompt.
        request_id: as vLLM's logs and the answer's `id` have it; before it is known, the client's `X-Request-Id`.
    """

    started: float
    received: float | None = None
    handed_over: float | None = None
    first_output: float | None = None
    prefill_s: float | None = None
    first_token: float | None = None
    ended: float | None = None
    status: int | None = None
    input: str | None = None
    cache: str = "none"
    videos: Sequence[LoadedVideo] = ()
    account: dict[str, Any] = field(default_factory=dict)
    prompt_tokens: int | None = None
    request_id: str | None = None

    @property
    def first(self) -> float | None:
        """The first token: where it was sent, or, of an answer in one piece, where this process had it."""
        return self.first_output if self.first_token is None else self.first_token

    @property
    def ttft_s(self) -> float | None:
        """From the request's first byte to the first token, seconds."""
        return None if self.first is None else self.first - self.started

    def saw(self, videos: Sequence[LoadedVideo], media: Set[str]) -> None:
        """Note what the request carried, and so its labels.

        Args:
            videos: what was loaded.
            media: kinds of its media parts, `video` and `image`. Videos of which none was loaded are named by uuids, of
                which nothing more is known; they count as codec input.
        """
        self.videos = videos
        if "video" in media:
            self.input = "dense" if videos and all(video.plan.mode == "dense" for video in videos) else "codec"
            known = bool(videos) or self.handed_over is not None
            self.cache = "warm" if known and all(video.cached for video in videos) else "cold"
        else:
            self.input = "image" if "image" in media else "text"


def stage_times(clock: RequestClock) -> dict[str, float | None]:
    """Seconds of each stage, in order; their sum is the time to the first token.

    Videos of a request load in parallel: an instant at which any of them is extracted counts as extract, any other at
    which one is fetched as fetch, so that no instant counts twice. What lies between the body and the hand-over and is
    neither is preprocess. The engine's own clock may be another machine's, so only its differences are used.

    Returns:
        None for a stage that was not reached, and for queue where the engine keeps no statistics
        (`--disable-log-stats`): prefill then holds both.
    """
    times: dict[str, float | None] = dict.fromkeys(STAGES)
    if clock.received is None:
        return times
    times["receive"] = clock.received - clock.started
    if clock.handed_over is None:
        return times
    fetching, extracting = media_intervals(clock)
    media, extracted = length([*fetching, *extracting]), length(extracting)
    times["fetch"], times["extract"] = media - extracted, extracted
    times["preprocess"] = clock.handed_over - clock.received - media
    first = clock.first
    if first is None:
        return times
    waited = first - clock.handed_over
    if clock.prefill_s is not None and clock.first_output is not None:
        queued = min(max(clock.first_output - clock.handed_over - clock.prefill_s, 0.0), waited)
        times["queue"] = queued
        waited -= queued
    times["prefill"] = waited
    return times


def media_intervals(clock: RequestClock) -> tuple[list[Interval], list[Interval]]:
    """When the videos were fetched and when they were extracted, within the time from the body to the hand-over."""
    assert clock.received is not None and clock.handed_over is not None
    bounds = (clock.received, clock.handed_over)
    fetching = [(video.started, video.started + video.fetch_s) for video in clock.videos]
    extracting = [
        (fetched, fetched + video.extract_s) for (_, fetched), video in zip(fetching, clock.videos, strict=True)
    ]
    return _within(fetching, bounds), _within(extracting, bounds)


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same instants as intervals that neither overlap nor touch, in order."""
    joined: list[Interval] = []
    for begin, end in sorted(intervals):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((begin, end))
    return joined


def length(intervals: Iterable[Interval]) -> float:
    """Time that intervals cover, each instant counted once."""
    return sum(end - begin for begin, end in union(intervals))


def _within(intervals: Iterable[Interval], bounds: Interval) -> list[Interval]:
    cut = [(max(begin, bounds[0]), min(end, bounds[1])) for begin, end in intervals]
    return [(begin, end) for begin, end in cut if begin < end]


def timings(clock: RequestClock, now: float) -> dict[str, float | None]:
    """`usage.timings`: the stages, ttft, and e2e up to now, the moment at which the answer is complete.

    Args:
        clock: the request's.
        now: seconds of `time.perf_counter`.
    """
    times = {**stage_times(clock), "ttft": clock.ttft_s, "e2e": now - clock.started}
    return {name: None if value is None else round(value, 6) for name, value in times.items()}
