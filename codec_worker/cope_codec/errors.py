"""What can go wrong with a video, as one exception with a closed set of codes."""

from __future__ import annotations

from typing import Literal, get_args

CodecErrorCode = Literal[
    "invalid_option",  # an option is unknown, out of range or contradicts another one; `param` names it
    "invalid_video",  # the bytes are no container that FFmpeg can read, or end before their index
    "no_video_stream",  # readable, but holds no moving pictures (audio only, cover art, subtitles)
    "no_frames",  # a video stream without a single frame in the part asked for
    "undecodable_video",  # frames are announced, but none of them can be decoded
    "unsupported_codec",  # FFmpeg was built without a decoder for the stream
]
CODES: tuple[str, ...] = get_args(CodecErrorCode)


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
