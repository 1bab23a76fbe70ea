"""Memory and files that two processes share by descriptor: they have no name, so nothing of them can be left behind.

The kernel frees an anonymous file with its last descriptor, whoever is killed and when; a named segment in /dev/shm
would need somebody alive to unlink it, and a directory that a worker's sandbox leaves open.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import mmap
import os
import pickle
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cope_codec.errors import CodecError

_NAME = "cope-codec"  # as /proc/<pid>/fd shows it
_FROZEN = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


@contextlib.contextmanager
def counting_descriptors() -> Iterator[None]:
    """Turn the lack of file descriptors into `queue_full`: it passes, and says nothing about the video.

    Raises:
        CodecError: `queue_full`.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        raise CodecError("queue_full", "all file descriptors of this process are in use; try again later") from None


def anonymous_file() -> int:
    """A new file in memory; the descriptor is the caller's to close."""
    return os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def share_source(source: str | Path | bytes) -> int:
    """A descriptor that another process can read the source from: of the file itself, or of a sealed copy of the bytes.

    Raises:
        OSError: the path cannot be read.
    """
    if not isinstance(source, bytes):
        return open_regular(source)
    fd = anonymous_file()
    try:
        write(fd, source)
        seal(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_regular(path: str | Path) -> int:
    """Open a regular file for reading; the descriptor is the caller's to close.

    Raises:
        OSError: it cannot be read, or is something else: a directory, or a pipe or device that may never give a byte.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # opening a pipe would wait for its writer
    kind = os.fstat(fd).st_mode
    if stat.S_ISREG(kind):
        return fd
    os.close(fd)
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "not a regular file", str(path))


def seal(fd: int) -> None:
    """Freeze an anonymous file: nobody who holds it can write to it, shorten it or lengthen it from here on.

    Without that, a worker could change what has been checked, or cut the file short: touching the pages that a
    shortened file has lost is the end of a process (SIGBUS).

    Raises:
        OSError: somebody still has it mapped for writing, or has kept it from being sealed.
    """
    if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _FROZEN != _FROZEN:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _FROZEN | fcntl.F_SEAL_SEAL)


def mapped(fd: int) -> memoryview:
    """A whole file's memory, read-only; it is unmapped when the last array that lies in it is gone.

    Raises:
        ValueError: the file is empty.
    """
    return memoryview(mmap.mmap(fd, 0, access=mmap.ACCESS_READ))


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


def load(fd: int) -> Any:
    """Unpickle a request; for workers only, which trust their parent: `wire` is for the way back."""
    return pickle.loads(mapped(fd))  # noqa: S301 - written by the parent


def write(fd: int, data: bytes | bytearray | memoryview, at: int = 0) -> None:
    """Write all of `data` at a position.

    Raises:
        OSError: the file would grow beyond the process's limit.
    """
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, at)
        view, at = view[count:], at + count
