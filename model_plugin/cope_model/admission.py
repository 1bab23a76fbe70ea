"""What a request may still take of the server: asked by those who fetch and decode its videos, answered by the server.

Where no server has set `current`, nothing is limited.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from typing import Protocol


class Admission(Protocol):
    """The share of one request; all methods are called in the event loop."""

    def add_video(self, part: str) -> None:
        """One more video is about to be fetched.

        Args:
            part: where in the request it stands.

        Raises:
            MediaError: `too_many_videos`, or `queue_full` where too many requests with video are being answered.
        """

    def hold_bytes(self, count: int, part: str) -> None:
        """So many bytes have been fetched and are kept until `release_bytes`.

        Raises:
            MediaError: `queue_full` where others hold too many.
            MediaFetchError: `media_too_large` where the request alone does.
        """

    def release_bytes(self, count: int) -> None:
        """So many bytes are kept no longer."""

    def decoding(self, seconds: float, pixels: int, part: str, *, at_once: bool) -> AbstractAsyncContextManager[None]:
        """A turn with the codec workers: entering waits for it.

        Args:
            seconds: length of the clip.
            pixels: what is to be decoded of it, pixels of source pictures.
            part: where in the request the video stands.
            at_once: nothing is left to decode, so there is nothing to wait for.

        Raises:
            MediaError: `queue_full` where too many seconds or pixels wait already.
        """


# Set for everything that a request does; vLLM loads media in tasks of their own, whose contexts are copies.
current: ContextVar[Admission | None] = ContextVar("cope_admission", default=None)
