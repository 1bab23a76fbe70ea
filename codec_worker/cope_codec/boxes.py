"""MP4's boxes, as far as FFmpeg does not tell what is in them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from cope_codec.shared import SharedFile, open_regular

_MOST_INDEX_BYTES = 256 * 1024 * 1024
_MOST_BOXES = 1000  # on one level; a real file has a handful


class UnusualError(Exception):
    """No MP4, or one that is laid out in a way which only FFmpeg handles."""


def reader(source: str | Path | bytes | SharedFile) -> IO[bytes] | io.RawIOBase:
    """The source, open at its start."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if isinstance(source, SharedFile):
        return source.open()
    return open(open_regular(source), "rb")


def movie(file: IO[bytes] | io.RawIOBase, *, whole: bool = True) -> memoryview:
    """The body of the file's `moov` box; its beginning, unless it must be `whole`, where the file ends in it.

    Raises:
        UnusualError: there is none, or it is not to be found.
    """
    end, at = file.seek(0, io.SEEK_END), 0
    for _ in range(_MOST_BOXES):
        if at >= end:
            break  # also where a box claims to be larger than any file
        file.seek(at)
        header = file.read(16) or b""
        if len(header) < 8 or (at == 0 and header[4:8] not in (b"ftyp", b"moov", b"free", b"wide", b"mdat", b"skip")):
            break
        size, length = int.from_bytes(header[:4], "big"), 8
        if size == 1:
            size, length = int.from_bytes(header[8:], "big"), 16
        if header[4:8] == b"moov":
            if not length < size <= _MOST_INDEX_BYTES or (whole and size > end - at):
                break
            file.seek(at + length)
            return memoryview(file.read(size - length) or b"")
        if size < length:
            break  # the rest of the file, or nonsense
        at += size
    raise UnusualError


def boxes(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """The boxes that lie one after another in `data`: (kind, body).

    Raises:
        UnusualError: one of them is cut off, or there are very many; those before it have been yielded.
    """
    at = 0
    for _ in range(_MOST_BOXES):
        if at + 8 > len(data):
            return
        size = int.from_bytes(data[at : at + 4], "big")
        if not 8 <= size <= len(data) - at:
            raise UnusualError
        yield bytes(data[at + 4 : at + 8]), data[at + 8 : at + size]
        at += size
    raise UnusualError


def only(data: memoryview, *path: bytes) -> memoryview:
    """The body of the one box at a path."""
    for step in path:
        found = [body for kind, body in boxes(data) if kind == step]
        if len(found) != 1:
            raise UnusualError
        data = found[0]
    return data
