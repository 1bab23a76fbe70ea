"""Memory and files that two processes share by descriptor: they have no name, so nothing of them can be left behind.

The kernel frees an anonymous file with its last descriptor, whoever is killed and when; a named segment in /dev/shm
would need somebody alive to unlink it, and a directory that a worker's sandbox leaves open.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import mmap
import os
import pickle
import struct
from pathlib import Path
from typing import Any

_NAME = "cope-codec"  # as /proc/<pid>/fd shows it
_HEADER = struct.Struct("<QQ")  # bytes of the pickle, number of buffers
_SIZE = struct.Struct("<Q")
_ALIGN = 64
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def anonymous_file() -> int:
    """A new file in memory; the descriptor is the caller's to close."""
    return os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def share_source(source: str | Path | bytes) -> int:
    """A descriptor that another process can read the source from: of the file itself, or of a sealed copy of the bytes.

    Raises:
        OSError: the path cannot be read.
    """
    if not isinstance(source, bytes):
        return os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    fd = anonymous_file()
    try:
        _write(fd, source)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


class SharedFd:
    """A descriptor that is closed with the last reference to it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.fd)


class SharedFile:
    """A source that is read through a descriptor of somebody else, from any number of places at once.

    Args:
        fd: a readable descriptor; it stays the caller's to close, and its own position is neither used nor moved.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.size = os.fstat(fd).st_size

    def open(self) -> io.RawIOBase:
        """A new reader that stands at the start."""
        return _Reader(self.fd, self.size)

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        return f"SharedFile({self.size} bytes)"


class _Reader(io.RawIOBase):
    """Reads with `pread`: descriptors that were passed on share one position."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd, self._size, self._at = fd, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = os.preadv(self._fd, [buffer], self._at)
        self._at += count
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at


def dump(fd: int, value: object) -> None:
    """Write a value to a file in memory; its arrays are written as they lie, without a copy.

    Raises:
        OSError: the file would grow beyond the process's limit.
    """
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    sizes = b"".join(_SIZE.pack(view.nbytes) for view in views)
    at = _write(fd, _HEADER.pack(len(head), len(views)) + sizes + head)
    for view in views:
        at = _write(fd, view, _aligned(at))


def load(fd: int) -> Any:
    """Read what `dump` wrote; arrays are read-only views of the file's memory, which lives as long as they do."""
    view = memoryview(mmap.mmap(fd, 0, access=mmap.ACCESS_READ))  # unmapped when the last array is gone
    head_bytes, count = _HEADER.unpack_from(view)
    at = _HEADER.size
    sizes = [_SIZE.unpack_from(view, at + number * _SIZE.size)[0] for number in range(count)]
    at += count * _SIZE.size
    head = view[at : at + head_bytes]
    at += head_bytes
    buffers = []
    for size in sizes:
        at = _aligned(at)
        buffers.append(view[at : at + size])
        at += size
    return pickle.loads(head, buffers=buffers)  # noqa: S301 - written by a process of ours


def _aligned(at: int) -> int:
    return -(-at // _ALIGN) * _ALIGN


def _write(fd: int, data: bytes | memoryview, at: int = 0) -> int:
    """Write all of `data` at a position; returns where it ends."""
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, at)
        view, at = view[count:], at + count
    return at
