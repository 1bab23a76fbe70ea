"""Where the bytes of finished files lie, behind one small interface."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from pathlib import Path


class StorageUnavailableError(OSError):
    """The storage does not answer, or does not let this server in."""


class Storage(ABC):
    """Keeps files by name; the index knows whose they are and what they are called. Safe to use from several threads.

    A name is an id of `cope_server.files.store`: letters, digits, `-` and `_`.

    Attributes:
        shared: other indexes may know of files in it that this one does not; it keeps their records, then.

    All methods may raise `StorageUnavailableError`.
    """

    shared = False

    @abstractmethod
    def put(self, temporary: Path, name: str, record: str = "", expires_at: int | None = None) -> None:
        """Keep a finished local file, whole or not at all, so that it survives a crash from here on.

        Args:
            temporary: the file, which may be moved; it is on the local file system, in the folder that the server keeps
                its uploads in.
            name: of the file.
            record: what the index will say of it, for other indexes.
            expires_at: when it is forgotten, Unix time, seconds; None is never.

        Raises:
            OSError: it cannot be kept.
        """

    @abstractmethod
    def local_path(self, name: str) -> Path:
        """A path under which the file can be opened now. Whoever has it open reads on when it is deleted.

        Raises:
            FileNotFoundError: there is no such file.
        """

    @abstractmethod
    def delete(self, name: str) -> None:
        """Forget a file; one that is not there is no error."""

    @abstractmethod
    def names(self) -> Iterator[str]:
        """The names of all files that must be in this index."""

    def record(self, name: str) -> str | None:
        """What was put beside a file of a shared storage; None if there is no such file."""
        return None

    def sweep(self, ours: Collection[str]) -> set[str]:
        """Remove what no index will come back to.

        Args:
            ours: names of finished files in this index, read before this call.

        Returns:
            Those of them that are gone.
        """
        return set()

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """End connections."""


class LocalStorage(Storage):
    """A folder, on the same file system as the temporary files.

    Args:
        folder: is made if it is missing, readable by this user alone.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder

    def put(self, temporary: Path, name: str, record: str = "", expires_at: int | None = None) -> None:
        """See `Storage.put`."""
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.rename(self._folder / name)
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)  # the name, too, must be on disk
        finally:
            os.close(folder)

    def local_path(self, name: str) -> Path:
        """See `Storage.local_path`."""
        path = self._folder / name
        path.stat()
        return path

    def delete(self, name: str) -> None:
        """See `Storage.delete`."""
        (self._folder / name).unlink(missing_ok=True)

    def names(self) -> Iterator[str]:
        """See `Storage.names`."""
        with os.scandir(self._folder) as entries:
            yield from [entry.name for entry in entries]
