"""What the videos of one request are and cost: planned where they are loaded, read where the request is answered."""

from __future__ import annotations

import itertools
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from cope_codec.plan import VideoPlan
    from cope_model.presets import Geometry


_BATCHED = re.compile(r"messages\[\d+\](?=\[)")  # one of a batch's conversations, in the place of a part


class ContextExceededError(ValueError):
    """The videos and images of a request take more tokens than the model's context holds."""


@dataclass(frozen=True, slots=True)
class LoadedVideo:
    """One video of a request.

    Attributes:
        plan: what it became.
        part: its place in the request, e.g. `messages[0].content[1].video_url`; None if the URL named none.
        fetch_s: seconds from the start of the fetch until its bytes were there and decoding began.
        extract_s: seconds for indexing and extraction.
        missing_slots: slots whose own frame could not be decoded.
        corrupt: the decoder reported damage.
        truncated: the file breaks off before its announced end.
        started: when the fetch began, seconds of `time.perf_counter`; the extraction follows it without a gap.
        cached: all of its primitives were in the cache: nothing was decoded for it.
    """

    plan: VideoPlan
    part: str | None
    fetch_s: float
    extract_s: float
    missing_slots: int = 0
    corrupt: bool = False
    truncated: bool = False
    started: float = 0.0
    cached: bool = False


@dataclass(slots=True)
class RequestVideos:
    """The videos of one request, and what may still come.

    Attributes:
        geometry: tokens per slot of the model.
        context_tokens: length of the model's context.
        uploaded: tells where the uploaded file with an id lies, or None if whoever makes the request has no such file;
            it may block, and any thread may call it. None where there are no uploads.
        loaded: videos so far, in the order in which loading ended.
    """

    geometry: Geometry
    context_tokens: int
    uploaded: Callable[[str], Path | None] | None = None
    loaded: list[LoadedVideo] = field(default_factory=list)
    _planned: Counter[str] = field(default_factory=Counter)  # tokens, by conversation
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def _count(self, tokens: int, part: str | None) -> int:
        """Count what a part takes of its conversation's context; returns what those before it take."""
        batched = _BATCHED.match(part or "")
        conversation = batched[0] if batched else ""
        with self._lock:
            before = self._planned[conversation]
            self._planned[conversation] += tokens
        return before

    def check(self, plan: VideoPlan, part: str | None = None) -> None:
        """Count a video's tokens before any of its frames is decoded; called from vLLM's media threads.

        Args:
            plan: of the video.
            part: its place in the request, which tells the conversations of a batch apart.

        Raises:
            ContextExceededError: this video and those before it do not fit into the context.
        """
        tokens = self.geometry.tokens(plan.i_frames, plan.p_frames)
        before = self._count(tokens, part)
        if before + tokens >= self.context_tokens:
            others = f" after {before:,} of the media before it" if before else ""
            raise ContextExceededError(
                f"the video takes {tokens:,} tokens ({plan.i_frames} keyframes, {plan.p_frames} delta slots in "
                f"{len(plan.gops)} GOPs){others}, the model's context holds {self.context_tokens:,}; "
                + self._advice(plan, self.context_tokens - before)
            )

    def check_image(self, part: str | None = None) -> None:
        """Count a still image's tokens before it is fetched.

        Args:
            part: its place in the request.

        Raises:
            ContextExceededError: this image and the media before it do not fit into the context.
        """
        tokens = self.geometry.i_tokens
        before = self._count(tokens, part)
        if before + tokens >= self.context_tokens:
            raise ContextExceededError(
                f"the image takes {tokens:,} tokens after {before:,} of the media before it, the model's context "
                f"holds {self.context_tokens:,}; send fewer images"
            )

    def _advice(self, plan: VideoPlan, room: int) -> str:
        """How the video would fit into fewer than `room` tokens."""
        fits = fitting_gops(plan, self.geometry, room)
        advice = []
        if plan.mode == "dense":
            frames = (room - 1) // self.geometry.i_tokens
            advice += [f"frames={frames} would fit"] if frames > 0 else []
        elif fits:
            advice.append(f"{fits} of its GOPs fit: max_gops={fits}")
        slots = plan.i_frames + plan.p_frames
        least = self.geometry.tokens(len(plan.gops), slots - len(plan.gops))
        if plan.mode != "dense" and plan.options.keyframes_per_gop > 1 and least < room:
            advice.append(f"keyframes_per_gop=1 would fit with {least:,}")
        advice.append(
            "else ask for a lower fps or a shorter clip" if advice else "ask for a lower fps or a shorter clip"
        )
        return "; ".join(advice)

    def in_order(self) -> list[LoadedVideo]:
        """The videos as they stood in the request."""
        return in_order(self.loaded)


def fitting_gops(plan: VideoPlan, geometry: Geometry, room: int) -> int:
    """How many GOPs of a plan, from its first one, take fewer than `room` tokens."""
    sums = itertools.accumulate(geometry.tokens(gop.i_frames, gop.p_frames) for gop in plan.gops)
    return sum(total < room for total in sums)


# Set before a request's media are loaded. vLLM loads them in tasks of their own, whose contexts are copies, so the
# object is what they share.
current: ContextVar[RequestVideos | None] = ContextVar("cope_videos", default=None)


def in_order(videos: Iterable[LoadedVideo]) -> list[LoadedVideo]:
    """Videos sorted by their place in the request; those without a part last."""

    def position(video: LoadedVideo) -> tuple[bool, list[int]]:
        return video.part is None, [int(number) for number in re.findall(r"\d+", video.part or "")]

    return sorted(videos, key=position)
