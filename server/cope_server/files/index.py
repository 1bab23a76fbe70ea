"""The index of uploaded files: whose they are, how large, until when. SQLite, shared by all API-server processes."""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_VERSION = 1
_SCHEMA = """
CREATE TABLE files (
    number INTEGER PRIMARY KEY AUTOINCREMENT,  -- breaks ties between files of one second
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    process TEXT,                              -- that is receiving the file; NULL when it is there
    filename TEXT NOT NULL DEFAULT '',
    purpose TEXT NOT NULL DEFAULT '',
    bytes INTEGER NOT NULL,                    -- while it is received: as many as it may have
    sha256 TEXT NOT NULL DEFAULT '',
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    prefetch TEXT NOT NULL DEFAULT '',         -- JSON; empty if none was asked for
    prefetcher TEXT                            -- process that is at it; NULL when it has ended
);
CREATE INDEX files_by_owner ON files (owner, created_at, number);
CREATE INDEX files_by_expiry ON files (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX files_coming ON files (process) WHERE process IS NOT NULL;
CREATE INDEX files_prefetching ON files (prefetcher) WHERE prefetcher IS NOT NULL;
"""
_BUSY_S = 30.0
_COLUMNS = "id, filename, purpose, bytes, sha256, created_at, expires_at, prefetch"
_ALIVE = "(expires_at IS NULL OR expires_at > :now)"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A finished file.

    Attributes:
        id: `file-` and 192 random bits.
        filename: as the client called it, for people; never a path of the server.
        purpose: `vision` or `user_data`.
        bytes: size.
        sha256: of the content, hexadecimal.
        created_at: when it was complete, Unix time, seconds.
        expires_at: when it is forgotten, Unix time, seconds; None is never.
        prefetch: what is done for it in advance and how far that is, JSON (`files.prefetch`); empty is nothing.
    """

    id: str
    filename: str
    purpose: str
    bytes: int
    sha256: str
    created_at: int
    expires_at: int | None
    prefetch: str = ""


class FileIndex:
    """One connection to the index, for any number of threads.

    Committed means on disk: a crash loses nothing that was reported as done.

    Args:
        path: of the database; made if it is missing. Its folder exists.

    Raises:
        ValueError: a newer version of this program has written it.
        OSError, sqlite3.Error: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        # Not SQLite's own lock: to switch to write-ahead logging while another process does fails at once.
        guard = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(guard, fcntl.LOCK_EX)
            _keep_private(path)
            self._db = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
            try:
                self._set_up()
            except BaseException:
                self._db.close()
                raise
        finally:
            os.close(guard)

    def _set_up(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > _VERSION:
            raise ValueError(f"the index of uploaded files has version {version}; this program knows {_VERSION}")
        if version == 0:
            self._db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT")

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._db.close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that nobody else writes in."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def used(self, owner: str, now: int) -> tuple[int, int]:
        """Bytes and number of an owner's files, those that are coming included."""
        with self._lock:
            return self._used(owner, now)

    def _used(self, owner: str, now: int) -> tuple[int, int]:
        query = f"SELECT coalesce(sum(bytes), 0), count(*) FROM files WHERE owner = :owner AND {_ALIVE}"  # noqa: S608
        size, count = self._db.execute(query, {"owner": owner, "now": now}).fetchone()
        return int(size), int(count)

    def reserve(
        self, name: str, owner: str, process: str, now: int, at_least: int, at_most: int, quota: tuple[int, int]
    ) -> int:
        """Note a file that is coming, if the owner's quota has room for it.

        Args:
            name: id of the file.
            owner: whose it will be.
            process: that receives it; see `abandoned`.
            now: Unix time, seconds.
            at_least: bytes that it is known to have.
            at_most: bytes that it cannot exceed.
            quota: bytes and number of files that the owner may have.

        Returns:
            Bytes that are reserved for it; -1 if there is no room, and nothing was noted.
        """
        with self._writing() as db:
            size, count = self._used(owner, now)
            room = quota[0] - size
            if count >= quota[1] or room < max(at_least, 1):
                return -1
            allowed = min(at_most, room)
            insert = "INSERT INTO files (id, owner, process, bytes, created_at) VALUES (?, ?, ?, ?, ?)"
            db.execute(insert, (name, owner, process, allowed, now))
            return allowed

    def finish(self, file: StoredFile) -> None:
        """A file that was reserved is there."""
        with self._writing() as db:
            done = db.execute(
                "UPDATE files SET process = NULL, filename = ?, purpose = ?, bytes = ?, sha256 = ?, created_at = ?, "
                "expires_at = ? WHERE id = ? AND process IS NOT NULL",
                (file.filename, file.purpose, file.bytes, file.sha256, file.created_at, file.expires_at, file.id),
            )
            if done.rowcount != 1:
                raise LookupError("the file was not reserved")

    def begin_prefetch(self, name: str, told: str, process: str) -> None:
        """A file, if it is still there, is going to be prefetched.

        Args:
            name: id of the file.
            told: JSON.
            process: that will do it.
        """
        with self._writing() as db:
            db.execute("UPDATE files SET prefetch = ?, prefetcher = ? WHERE id = ?", (told, process, name))

    def note_prefetch(self, name: str, told: str, *, ended: bool) -> None:
        """Say how far a file's prefetch is; one that has ended stays as it is, in whatever order threads come here."""
        kept = "NULL" if ended else "prefetcher"
        query = f"UPDATE files SET prefetch = ?, prefetcher = {kept} WHERE id = ? AND prefetcher IS NOT NULL"  # noqa: S608
        with self._writing() as db:
            db.execute(query, (told, name))

    def prefetch_of(self, name: str) -> str:
        """What was last said of a file's prefetch; empty if nothing was."""
        with self._lock:
            row = self._db.execute("SELECT prefetch FROM files WHERE id = ?", (name,)).fetchone()
        return "" if row is None else str(row[0])

    def interrupt(self, alive: Collection[str]) -> None:
        """Prefetches of processes that are gone have failed.

        Args:
            alive: processes that may still finish theirs.
        """
        with self._writing() as db:
            rows = db.execute("SELECT id, prefetch, prefetcher FROM files WHERE prefetcher IS NOT NULL").fetchall()
            for name, told, process in rows:
                if process not in alive:
                    failed = json.dumps({**json.loads(told), "status": "failed", "error": "cancelled"})
                    db.execute("UPDATE files SET prefetch = ?, prefetcher = NULL WHERE id = ?", (failed, name))

    def forget(self, name: str) -> None:
        """Drop a file that was coming."""
        with self._writing() as db:
            db.execute("DELETE FROM files WHERE id = ? AND process IS NOT NULL", (name,))

    def get(self, name: str, owner: str, now: int) -> StoredFile | None:
        """A finished file of this owner."""
        query = f"SELECT {_COLUMNS} FROM files WHERE id = :id AND owner = :owner AND process IS NULL AND {_ALIVE}"  # noqa: S608
        with self._lock:
            row = self._db.execute(query, {"id": name, "owner": owner, "now": now}).fetchone()
        return None if row is None else StoredFile(*row)

    def remove(self, name: str, owner: str, now: int) -> bool:
        """Drop a finished file of this owner; False if there is none."""
        query = f"DELETE FROM files WHERE id = :id AND owner = :owner AND process IS NULL AND {_ALIVE}"  # noqa: S608
        with self._writing() as db:
            return db.execute(query, {"id": name, "owner": owner, "now": now}).rowcount == 1

    def page(
        self, owner: str, now: int, *, limit: int, after: str | None, newest_first: bool, purpose: str | None
    ) -> tuple[list[StoredFile], bool]:
        """Some of an owner's files, by the time when they were complete.

        Args:
            owner: whose.
            now: Unix time, seconds.
            limit: most files of the page.
            after: id of the last file of the page before.
            newest_first: the order.
            purpose: of the files; None is any.

        Returns:
            The files, and whether there are more.

        Raises:
            LookupError: the owner has no file `after`.
        """
        sign, order = ("<", "DESC") if newest_first else (">", "ASC")
        query = f"SELECT {_COLUMNS} FROM files WHERE owner = :owner AND process IS NULL AND {_ALIVE}"  # noqa: S608
        values: dict[str, str | int] = {"owner": owner, "now": now, "limit": limit + 1}
        with self._lock:
            if after is not None:
                place = "SELECT created_at, number FROM files WHERE id = ? AND owner = ? AND process IS NULL"
                row = self._db.execute(place, (after, owner)).fetchone()
                if row is None:
                    raise LookupError("no such file")
                query += f" AND (created_at, number) {sign} (:created_at, :number)"
                values["created_at"], values["number"] = row
            if purpose is not None:
                query += " AND purpose = :purpose"
                values["purpose"] = purpose
            query += f" ORDER BY created_at {order}, number {order} LIMIT :limit"
            rows = self._db.execute(query, values).fetchall()
        return [StoredFile(*row) for row in rows[:limit]], len(rows) > limit

    def expire(self, now: int) -> list[str]:
        """Drop what has expired; returns the ids."""
        with self._lock:  # most sweeps find nothing: they need not wait for, or keep up, those who write
            if self._db.execute("SELECT 1 FROM files WHERE expires_at <= ? LIMIT 1", (now,)).fetchone() is None:
                return []
        with self._writing() as db:
            rows = db.execute("DELETE FROM files WHERE expires_at <= ? RETURNING id", (now,)).fetchall()
        return [str(row[0]) for row in rows]

    def abandoned(self, alive: Collection[str]) -> list[str]:
        """Drop what processes were receiving that are gone; returns the ids.

        Args:
            alive: processes that may still finish what they receive.
        """
        with self._writing() as db:
            rows = db.execute("SELECT id, process FROM files WHERE process IS NOT NULL").fetchall()
            gone = [str(name) for name, process in rows if process not in alive]
            db.executemany("DELETE FROM files WHERE id = ?", [(name,) for name in gone])
        return gone

    def finished(self) -> set[str]:
        """Ids of all files that are there, whoever's."""
        with self._lock:
            return {str(row[0]) for row in self._db.execute("SELECT id FROM files WHERE process IS NULL")}

    def drop(self, names: Collection[str]) -> None:
        """Forget finished files that are gone, whoever's."""
        with self._writing() as db:
            db.executemany("DELETE FROM files WHERE id = ? AND process IS NULL", [(name,) for name in names])

    def names(self) -> set[str]:
        """Ids of all files, whoever's and in whatever state."""
        with self._lock:
            return {str(row[0]) for row in self._db.execute("SELECT id FROM files")}


def _keep_private(path: Path) -> None:
    """Let nobody else read the ids and names in it; SQLite gives its other files the same mode."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        # By name: to close a descriptor of the file would give up the locks that this process may hold on it.
        for file in (path, *(path.with_name(path.name + end) for end in ("-wal", "-shm"))):
            with suppress(FileNotFoundError, PermissionError):
                file.chmod(0o600)
