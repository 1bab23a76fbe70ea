"""Uploaded files from their first byte to their end: received, kept, looked up, forgotten."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from cope_server.files.errors import FileError, unknown_file
from cope_server.files.index import FileIndex, StoredFile
from cope_server.files.storage import LocalStorage, Storage, StorageUnavailableError

logger = logging.getLogger("vllm.cope_server.files")  # below vLLM's logger, so that its settings apply

_RANDOM_BYTES = 24
_ID = re.compile(r"file-[A-Za-z0-9_-]{32}")
ID_PATTERN = f"^{_ID.pattern}$"  # for JSON schemas


@dataclass(frozen=True, slots=True)
class FileLimits:
    """What may be kept.

    Attributes:
        file_bytes: of one file.
        owner_bytes: of all files of one API key.
        owner_files: files of one API key.
    """

    file_bytes: int
    owner_bytes: int
    owner_files: int


class FileStore:
    """The files in a folder, which several processes may share; its methods block, and any thread may call them.

    A file exists from the moment in which its row in the index says so: its bytes are on disk before. Whatever a killed
    process leaves (bytes that were arriving, bytes without a row) is removed by the next `sweep` of any process. In a
    shared storage there are files of other folders, too: they are found by their id, but not listed and not counted.

    Args:
        folder: for the index, for what is arriving and, unless `storage` says otherwise, for the files.
        limits: what may be kept.
        storage: for finished files; None is the folder itself.
        now: Unix time, seconds.

    Raises:
        OSError, sqlite3.Error: the folder cannot be used.
        ValueError: see `FileIndex`.
    """

    def __init__(
        self, folder: Path, limits: FileLimits, storage: Storage | None = None, now: Callable[[], float] = time.time
    ) -> None:
        self.limits = limits
        self._incoming, self._processes = folder / "incoming", folder / "processes"
        for needed in (self._incoming, self._processes):
            needed.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._storage = storage if storage is not None else LocalStorage(folder / "stored")
        self._now = now
        self._index = FileIndex(folder / "index.sqlite3")
        self._unwanted: set[str] = set()  # rows of uploads that ended while the index could not be written
        self._process = secrets.token_hex(8)
        self._alive = _hold(self._processes / self._process)

    def close(self) -> None:
        """Give up the index; uploads that are still arriving are abandoned."""
        (self._processes / self._process).unlink(missing_ok=True)
        os.close(self._alive)
        self._index.close()
        self._storage.close()

    def begin(self, owner: str, at_least: int = 0, at_most: int | None = None) -> Upload:
        """Receive a file.

        Args:
            owner: whose it will be.
            at_least: bytes that it is known to have.
            at_most: bytes that it cannot exceed; None is not known.

        Raises:
            FileError: `file_too_large`, `quota_exceeded` or `storage_full`, before a byte is taken.
        """
        limits = self.limits
        if at_least > limits.file_bytes:
            raise FileError("file_too_large", f"a file may have at most {limits.file_bytes:,} bytes", parameter="file")
        name = "file-" + secrets.token_urlsafe(_RANDOM_BYTES)
        most = limits.file_bytes if at_most is None else min(at_most, limits.file_bytes)
        quota = (limits.owner_bytes, limits.owner_files)
        with _telling_why_not():
            allowed = self._index.reserve(name, owner, self._process, self._time(), at_least, most, quota)
        if allowed < 0:
            raise self._over_quota()
        try:
            with _telling_why_not():
                return Upload(self, name, owner, allowed)
        except BaseException:
            self._forget(name)
            raise

    def get(self, owner: str, name: str, parameter: str = "file_id") -> StoredFile:
        """A file of this owner.

        Raises:
            FileError: `unknown_file`.
        """
        found = self._index.get(name, owner, self._time()) or self._elsewhere(owner, name)
        if found is None:
            raise unknown_file(parameter)
        return found

    def _elsewhere(self, owner: str, name: str) -> StoredFile | None:
        """A file of this owner that another folder's index has."""
        if not self._storage.shared or not is_id(name):
            return None
        with _telling_why_not():
            record = self._storage.record(name)
        if record is None:
            return None
        told = json.loads(record)
        if told["owner"] != owner:
            return None
        found = StoredFile(**{entry.name: told[entry.name] for entry in fields(StoredFile)})
        return found if found.expires_at is None or found.expires_at > self._time() else None

    def local_path(self, owner: str, name: str) -> Path:
        """Where a file of this owner can be opened now.

        Raises:
            FileError: `unknown_file`.
        """
        self.get(owner, name)
        try:
            with _telling_why_not():
                return self._storage.local_path(name)
        except FileNotFoundError:  # deleted in this moment, or by hand
            raise unknown_file("file_id") from None

    def open(self, owner: str, name: str) -> int:
        """A file of this owner, opened for reading; the descriptor is the caller's to close.

        Raises:
            FileError: `unknown_file`.
        """
        try:
            return os.open(self.local_path(owner, name), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # deleted in this moment
            raise unknown_file("file_id") from None

    def page(
        self, owner: str, *, limit: int, after: str | None, newest_first: bool, purpose: str | None
    ) -> tuple[list[StoredFile], bool]:
        """Some files of this owner, and whether there are more; see `FileIndex.page`.

        Raises:
            FileError: `unknown_file` for `after`.
        """
        try:
            return self._index.page(
                owner, self._time(), limit=limit, after=after, newest_first=newest_first, purpose=purpose
            )
        except LookupError:
            raise unknown_file("after") from None

    def delete(self, owner: str, name: str) -> None:
        """Forget a file; who has it open reads on.

        Raises:
            FileError: `unknown_file`.
        """
        if self._storage.shared:
            # The row goes last: without one, what is left in the storage would be a file that this key still has.
            self.get(owner, name)
            with _telling_why_not():
                self._storage.delete(name)
            self._index.remove(name, owner, self._time())
            return
        if not self._index.remove(name, owner, self._time()):
            raise unknown_file("file_id")
        self._storage.delete(name)

    def begin_prefetch(self, name: str, told: str) -> None:
        """This process is going to prefetch a file; see `FileIndex.begin_prefetch`."""
        self._index.begin_prefetch(name, told, self._process)

    def note_prefetch(self, name: str, told: str, *, ended: bool = False) -> None:
        """Say how far a file's prefetch is; see `FileIndex.note_prefetch`."""
        self._index.note_prefetch(name, told, ended=ended)

    def prefetch_of(self, name: str) -> str:
        """How far a file's prefetch is, JSON; empty if there is none, or no such file."""
        return self._index.prefetch_of(name)

    def sweep(self) -> None:
        """Remove what has expired, and what processes have left that are gone."""
        for name in list(self._unwanted):
            self._index.forget(name)
            self._unwanted.discard(name)
        for name in self._index.expire(self._time()):
            self._storage.delete(name)
        finished = self._index.finished() if self._storage.shared else set()
        # A file has a row before it has a byte, so what was listed here and has none below is nobody's.
        here = list(self._storage.names())
        arriving = [path.name for path in self._incoming.iterdir()]
        alive = set(_living(self._processes))
        for name in self._index.abandoned(alive):
            self._storage.delete(name)
        self._index.interrupt(alive)
        known = self._index.names()
        for name in here:
            if name not in known and is_id(name):
                self._storage.delete(name)
        for name in arriving:
            if name not in known:
                (self._incoming / name).unlink(missing_ok=True)
        if gone := self._storage.sweep(finished):
            self._index.drop(gone)

    def _forget(self, name: str) -> None:
        """Drop the row of an upload that has ended, or have the next sweep do it: until then it counts for its key."""
        try:
            self._index.forget(name)
        except sqlite3.OperationalError as error:  # the disk is full, or others hold the index
            logger.warning("the row of an upload could not be dropped now: %s", error)
            self._unwanted.add(name)

    def _time(self) -> int:
        return int(self._now())

    def _over_quota(self) -> FileError:
        limits = self.limits
        message = f"an API key may keep {limits.owner_files:,} files and {limits.owner_bytes:,} bytes; delete some"
        return FileError("quota_exceeded", message, parameter="file")


class Upload:
    """A file that is arriving: `write` its bytes, then `keep` it; `discard` in any case. Made by `FileStore.begin`.

    Attributes:
        path: where its bytes are until it is kept.
    """

    def __init__(self, store: FileStore, name: str, owner: str, allowed: int) -> None:
        self._store, self._name, self._owner, self._allowed = store, name, owner, allowed
        self._size, self._hash = 0, hashlib.sha256()
        self._put = False  # whether the storage may hold anything of it
        self._lock = threading.Lock()  # a cancelled request discards while its last bytes are still being written
        self.path = store._incoming / name
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(self, pieces: Iterable[bytes]) -> None:
        """Append bytes.

        Raises:
            FileError: `file_too_large`, `quota_exceeded`, `storage_full`.
        """
        with self._lock, _telling_why_not():
            if self._fd < 0:
                raise ValueError("the upload has ended")
            for piece in pieces:
                self._size += len(piece)
                if self._size > self._allowed:
                    raise self._too_large()
                self._hash.update(piece)
                view = memoryview(piece)
                while view:
                    view = view[os.write(self._fd, view) :]

    def keep(self, filename: str, purpose: str, expires_after_s: int | None) -> StoredFile:
        """The file is complete: from here on it survives whatever happens to the process.

        Raises:
            FileError: `storage_full`, `storage_unavailable`.
        """
        store = self._store
        with self._lock, _telling_why_not():
            if self._fd < 0:
                raise ValueError("the upload has ended")
            now = store._time()
            expires_at = None if expires_after_s is None else now + expires_after_s
            file = StoredFile(self._name, filename, purpose, self._size, self._hash.hexdigest(), now, expires_at)
            self._put = True
            record = json.dumps({"owner": self._owner, **asdict(file)})
            store._storage.put(self.path, self._name, record, expires_at)
            store._index.finish(file)
            self._end()
        return file

    def discard(self) -> None:
        """Leave nothing of a file that was not kept; does nothing to one that was."""
        with self._lock:
            if self._fd < 0:
                return
            self._end()
            try:
                if self._put:  # `keep` has failed half-way
                    self._store._storage.delete(self._name)
            except StorageUnavailableError:
                # Its record, which is written last, is hardly there; without one, a sweep takes the rest.
                logger.warning("what there may be of an upload could not be deleted now")
            self._store._forget(self._name)

    def _end(self) -> None:
        os.close(self._fd)
        self._fd = -1
        self.path.unlink(missing_ok=True)

    def _too_large(self) -> FileError:
        limits = self._store.limits
        if self._allowed < limits.file_bytes:
            return self._store._over_quota()
        return FileError("file_too_large", f"a file may have at most {limits.file_bytes:,} bytes", parameter="file")


def is_id(name: str) -> bool:
    """Whether a text has the form of an uploaded file's id."""
    return _ID.fullmatch(name) is not None


def _hold(path: Path) -> int:
    """Make a file and lock it until this process ends; returns the descriptor."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:
            return fd
        os.close(fd)  # another process took it for a left-over before it was locked


def _living(folder: Path) -> Iterator[str]:
    """Names of the files that some process holds locked; the others are removed."""
    for path in folder.iterdir():
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield path.name
        else:
            path.unlink(missing_ok=True)
        finally:
            os.close(fd)


@contextlib.contextmanager
def _telling_why_not() -> Iterator[None]:
    """Turn the lack of disk space into `storage_full`, and of an answer into `storage_unavailable`."""
    try:
        yield
    except StorageUnavailableError as error:
        logger.error("%s", error)
        message = "the storage of uploaded files does not answer; try again later"
        raise FileError("storage_unavailable", message, parameter=None) from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
            raise
    else:
        return
    raise FileError("storage_full", "the server has no room for the file", parameter="file")
