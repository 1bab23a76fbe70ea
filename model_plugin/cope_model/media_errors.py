"""What a client did wrong with a media part, as vLLM's own exceptions, which it answers with 400 and 422."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from vllm.exceptions import VLLMUnprocessableEntityError, VLLMValidationError

from cope_codec.errors import CodecError, CodecErrorCode

MediaErrorCode = Literal[
    "invalid_url",
    "url_not_allowed",
    "invalid_data_uri",
    "empty_media",
    "file_not_allowed",
    "file_not_found",
    "unknown_file",
    "invalid_media",
    "invalid_part",
    "context_exceeded",
    "too_many_videos",
]
FetchErrorCode = Literal[
    "unreachable_url",
    "media_too_large",
]
MEANINGS: Mapping[MediaErrorCode | FetchErrorCode, str] = {
    "invalid_url": "no URL at all, or a scheme that is not served",
    "url_not_allowed": "a host or address that this server does not fetch from, at once or after a redirect",
    "invalid_data_uri": "not base64, or without a comma",
    "empty_media": "no bytes",
    "file_not_allowed": "`file://` without an allowed folder, or outside of it",
    "file_not_found": "`file://` to something that cannot be read",
    "unknown_file": "no uploaded file has this id: it never was, has expired, or is another API key's",
    "invalid_media": "the bytes are no image that can be read, or an uploaded video was given as one",
    "invalid_part": "a message part without what it should hold",
    "context_exceeded": "the videos and images of a request take more tokens than the model's context holds",
    "too_many_videos": "more videos than one request may have (`--limit-videos`)",
    "unreachable_url": "nobody answers, or not in time, or with an error status, or with too many redirects",
    "media_too_large": "more than `VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB`, or than the server holds (`--limit-held-mb`)",
}


class MediaError(VLLMValidationError):  # type: ignore[misc]
    """A part that cannot be used (400).

    Attributes:
        parameter: the part, or an option of it.
        code: one of `MediaErrorCode` and cope_codec's codes; stable, meant for programs.
    """

    def __init__(self, code: MediaErrorCode | CodecErrorCode, message: str, *, parameter: str) -> None:
        super().__init__(message, parameter=parameter)
        self.code = code

    def __str__(self) -> str:
        # vLLM's own would append "(parameter=...)", which the answer carries in `param` anyway.
        return str(self.args[0])


class MediaFetchError(VLLMUnprocessableEntityError):  # type: ignore[misc]
    """A part whose URL did not give its bytes (422), or whose bytes there is no room for (507).

    Attributes:
        parameter: the part.
        code: one of `FetchErrorCode`, or `storage_full`, which uploads have, too.
    """

    def __init__(
        self, message: str, *, parameter: str, code: FetchErrorCode | Literal["storage_full"] = "unreachable_url"
    ) -> None:
        super().__init__(message, parameter=parameter)
        self.code = code

    def __str__(self) -> str:
        return str(self.args[0])


def from_codec(error: CodecError, part: str) -> MediaError:
    """The codec worker's complaint about a part; an option's name joins the part's path."""
    return MediaError(error.code, str(error), parameter=f"{part}.{error.param}" if error.param else part)
