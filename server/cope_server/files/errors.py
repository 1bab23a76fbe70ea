"""Why an upload or a file's id is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from cope_codec.errors import CodecErrorCode

FileErrorCode = Literal[
    "invalid_upload",
    "file_too_large",
    "quota_exceeded",
    "storage_full",
    "storage_unavailable",
]
MEANINGS: Mapping[FileErrorCode, str] = {
    "invalid_upload": "the body is no complete multipart form with a `file` and a `purpose`; `param` names the field",
    "file_too_large": "more bytes than one file may have (`--files-max-mb`)",
    "quota_exceeded": "the files of this API key have more bytes, or are more, than it may keep; delete some",
    "storage_full": "the server's disk is full; also for a video that is fetched from a URL",
    "storage_unavailable": "the object store of uploaded files (`--files-storage`) does not answer; try again later",
}


class FileError(Exception):
    """An upload, or a question about a file, that is refused.

    Attributes:
        code: one of `FileErrorCode`, of the codec worker's codes, or `unknown_file`; stable, meant for programs.
        parameter: the field of the form, or the parameter, that is at fault; None if none is.
    """

    def __init__(
        self, code: FileErrorCode | CodecErrorCode | Literal["unknown_file"], message: str, *, parameter: str | None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.parameter = parameter


def unknown_file(parameter: str) -> FileError:
    """The answer for an id that never was, is another key's, or is no longer: nobody learns which."""
    return FileError("unknown_file", "there is no file with this id", parameter=parameter)
