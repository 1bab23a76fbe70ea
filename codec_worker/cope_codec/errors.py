"""What can go wrong with a video, as one exception with a closed set of codes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Literal, get_args

CodecErrorCode = Literal[
    "invalid_option",
    "invalid_video",
    "no_video_stream",
    "no_frames",
    "undecodable_video",
    "unsupported_codec",
    "video_too_large",
    "out_of_memory",
    "timeout",
    "worker_died",
    "cancelled",
    "queue_full",
]
MEANINGS: Mapping[CodecErrorCode, str] = {
    "invalid_option": "an option is unknown, out of range or contradicts another one; `param` names it",
    "invalid_video": "the bytes are no container that FFmpeg can read, or end before their index",
    "no_video_stream": "readable, but holds no moving pictures (audio only, cover art, subtitles)",
    "no_frames": "a video stream without a single frame in the part asked for",
    "undecodable_video": "frames are announced, but none of them can be decoded",
    "unsupported_codec": "FFmpeg was built without a decoder for the stream",
    "video_too_large": "more bytes, pixels, packets or hours than `Limits` allow",
    "out_of_memory": "a worker needed more memory than `Limits.memory_bytes`",
    "timeout": "a worker was still busy with the video after `Limits.wall_s`",
    "worker_died": "the worker process ended in the middle of the task",
    "cancelled": "the caller, or the end of the pool, took the task back",
    "queue_full": "too many tasks are waiting; the video itself may be good, so try again later",
}
CODES: tuple[str, ...] = get_args(CodecErrorCode)
_MOST_LOGGED = 500

_log = logging.getLogger(__name__)


class CodecError(ValueError):
    """A video or an option that cannot be used.

    Attributes:
        code: one of `CODES`; stable, meant for programs.
        param: the option that is at fault, or None when it is the video itself.
    """

    def __init__(self, code: CodecErrorCode, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.code: CodecErrorCode = code
        self.param = param

    def __reduce__(self) -> tuple[object, ...]:
        # ValueError would pickle the message alone; errors cross process borders with their code.
        return (_rebuild, (self.code, str(self), self.param))


def _rebuild(code: CodecErrorCode, message: str, param: str | None) -> CodecError:
    return CodecError(code, message, param=param)


def unexpected(detail: str) -> RuntimeError:
    """The error for a bug of ours in a worker: the detail may name files of the server, and goes to the log only."""
    _log.warning("a codec worker failed unexpectedly: %r", detail[-_MOST_LOGGED:])
    return RuntimeError("a codec worker failed unexpectedly; the log says more")
