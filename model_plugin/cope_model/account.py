"""Which videos a request brought: noted where they are loaded, read where the request is answered."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cope_codec.plan import VideoPlan


@dataclass(frozen=True, slots=True)
class LoadedVideo:
    """One video of a request.

    Attributes:
        plan: what it became.
        part: its place in the request, e.g. `messages[0].content[1].video_url`; None if the URL named none.
        fetch_s: seconds from the start of the fetch until its bytes were there and decoding began.
        extract_s: seconds for indexing and extraction.
    """

    plan: VideoPlan
    part: str | None
    fetch_s: float
    extract_s: float


# Set it to an empty list before a request's media are loaded. vLLM loads them in tasks of their own, whose contexts are
# copies, so the list is what they share.
current: ContextVar[list[LoadedVideo] | None] = ContextVar("cope_videos", default=None)


def record(video: LoadedVideo) -> None:
    """Note a video, if anybody asked for it."""
    videos = current.get()
    if videos is not None:
        videos.append(video)


def in_order(videos: Iterable[LoadedVideo]) -> list[LoadedVideo]:
    """The videos as they stood in the request; those without a part last. Loading ends in any order."""

    def position(video: LoadedVideo) -> tuple[bool, list[int]]:
        return video.part is None, [int(number) for number in re.findall(r"\d+", video.part or "")]

    return sorted(videos, key=position)
