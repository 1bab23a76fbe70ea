"""The multipart form of an upload, read piece by piece: fields are checked as they come, the file is handed on."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Any, Literal, cast, get_args

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from cope_codec.errors import CodecError
from cope_codec.options import VideoOptions
from cope_server.files.errors import FileError
from cope_server.files.prefetch import KINDS, Prefetch, PrefetchKind

Purpose = Literal["vision", "user_data"]
PURPOSES: tuple[str, ...] = get_args(Purpose)
LEAST_EXPIRY_S, MOST_EXPIRY_S = 3600, 30 * 24 * 3600  # as OpenAI's
_FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]", "prefetch")
_OPTION = re.compile(r"options\[([a-z_]{1,32})\]")  # as the official client writes `extra_body={"options": {...}}`
_MOST_FIELD_BYTES = 256
MOST_OTHER_BYTES = 16 << 10  # of a body, beside the file: boundaries, headers and the other fields
_MOST_NAME_CHARACTERS = 255


class UploadForm:
    """A form with a `file`, a `purpose` and perhaps `expires_after`, `prefetch` and `options`, in any order.

    Attributes:
        filename: of the file, made harmless; for people only.
        purpose: `vision` or `user_data`.
        expires_after_s: seconds; None is never.
        prefetch: what is to be done in advance; None is nothing.

    Args:
        content_type: of the request.

    Raises:
        FileError: `invalid_upload`.
    """

    def __init__(self, content_type: str) -> None:
        kind, parameters = parse_options_header(content_type)
        boundary = parameters.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not boundary:
            raise _invalid("an upload is multipart/form-data with a boundary", None)
        self.filename = self.purpose = ""
        self.expires_after_s: int | None = None
        self.prefetch: Prefetch | None = None
        self._kind = ""
        self._options: dict[str, Any] = {}
        self._values: dict[str, str] = {}
        self._pieces: list[bytes] = []
        self._headers: dict[bytes, bytes] = {}
        self._name, self._value = b"", b""  # of the header at hand
        self._part = ""  # name of the part at hand
        self._field = bytearray()
        self._seen: set[str] = set()
        self._ended = False
        self._other_bytes = 0
        callbacks: dict[str, Callable[..., None]] = {
            "on_part_begin": self._begin_part,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]  # a TypedDict of the same
        except FormParserError:
            raise _invalid("the boundary of the form is too long", None) from None

    def feed(self, data: bytes) -> list[bytes]:
        """Read on in the body.

        Returns:
            Bytes of the file that have come.

        Raises:
            FileError: `invalid_upload`; `invalid_option` for a value that is not allowed.
        """
        try:
            self._parser.write(data)
        except FormParserError:
            raise _invalid("the body is no multipart form", None) from None
        pieces, self._pieces = self._pieces, []
        self._other_bytes += len(data) - sum(map(len, pieces))
        if self._other_bytes > MOST_OTHER_BYTES:  # fields without end would fill the memory
            raise _invalid("the form has too much beside its file", None)
        return pieces

    def finish(self) -> None:
        """The body has ended.

        Raises:
            FileError: `invalid_upload` when the form is not complete or lacks a field.
        """
        if not self._ended:
            raise _invalid("the form breaks off before its end", None)
        for name in ("file", "purpose"):
            if name not in self._seen:
                raise _invalid(f"the form has no field {name!r}", name)
        given = [name for name in _FIELDS[1:3] if name in self._seen]
        if len(given) == 1:
            raise _invalid("expires_after needs an anchor and seconds", "expires_after")
        if self._options and not self._kind:
            raise _option("options say how to prefetch: they need the field prefetch", "options")
        if self._kind:
            try:
                options = VideoOptions.from_mapping(self._options)
            except CodecError as error:
                raise _option(str(error), f"options.{error.param}") from None
            self.prefetch = Prefetch(cast(PrefetchKind, self._kind), options.to_mapping())

    def _begin_part(self) -> None:
        self._headers = {}
        self._field.clear()

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name, self._value = b"", b""

    def _end_headers(self) -> None:
        kind, parameters = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = parameters.get(b"name", b"").decode(errors="replace")
        if kind != b"form-data" or not name:
            raise _invalid("a part of the form has no name", None)
        if name != "file" and name not in _FIELDS and not _OPTION.fullmatch(name):
            raise _invalid("the form has a field that is not known", name[:_MOST_FIELD_BYTES])
        if name in self._seen:
            raise _invalid(f"the form has two fields {name!r}", name)
        self._part = name
        self._seen.add(name)
        if name == "file":
            self.filename = _harmless(parameters.get(b"filename", b"").decode(errors="replace"))

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._part == "file":
            self._pieces.append(data[start:end])
            return
        self._field += data[start:end]
        if len(self._field) > _MOST_FIELD_BYTES:
            raise _invalid("the field is too long", self._part)

    def _end_part(self) -> None:
        value = self._field.decode(errors="replace").strip()
        if self._part == "purpose":
            if value not in PURPOSES:
                raise _option(f"purpose must be one of {', '.join(PURPOSES)}", "purpose")
            self.purpose = value
        elif self._part == "expires_after[anchor]":
            if value != "created_at":
                raise _option("the only anchor is created_at", "expires_after.anchor")
        elif self._part == "expires_after[seconds]":
            seconds = int(value) if value.isascii() and value.isdigit() else -1
            if not LEAST_EXPIRY_S <= seconds <= MOST_EXPIRY_S:
                message = f"expires_after.seconds must be a whole number from {LEAST_EXPIRY_S} to {MOST_EXPIRY_S}"
                raise _option(message, "expires_after.seconds")
            self.expires_after_s = seconds
        elif self._part == "prefetch":
            if value not in KINDS:
                raise _option(f"prefetch must be one of {', '.join(KINDS)}", "prefetch")
            self._kind = value
        elif option := _OPTION.fullmatch(self._part):
            self._options[option[1]] = _scalar(value)

    def _end(self) -> None:
        self._ended = True


def _scalar(text: str) -> int | float | str:
    """A form's text as JSON would have had it."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _harmless(filename: str) -> str:
    """A name without folders and control characters; never empty."""
    last = filename.replace("\\", "/").rpartition("/")[2]
    shown = "".join(character for character in last if unicodedata.category(character)[0] != "C")
    return shown.strip()[:_MOST_NAME_CHARACTERS] or "upload"


def _invalid(message: str, parameter: str | None) -> FileError:
    return FileError("invalid_upload", message, parameter=parameter)


def _option(message: str, parameter: str) -> FileError:
    return FileError("invalid_option", message, parameter=parameter)
