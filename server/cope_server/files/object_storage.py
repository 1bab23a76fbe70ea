"""Finished files in an S3-compatible object store that servers share, with a spool of local copies for the workers.

Two kinds of names below the prefix:

- `data/ID`: the bytes, in one request. S3 keeps an object whole or not at all, so an upload that is killed leaves
  nothing there; parts of a multipart upload would stay until somebody lists and aborts them.
- `records/ID/EXPIRY`: what the index of the server that took the file says of it; EXPIRY is Unix time, 0 is never. It
  is written after the bytes and deleted before them: a file exists as long as it has a record.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from cope_server.files.storage import Storage, StorageUnavailableError

if TYPE_CHECKING:
    from obstore.store import S3Store

MOST_FILE_BYTES = 5 << 30  # of one request to S3
_SIGNED_FOR = datetime.timedelta(minutes=5)  # until the request begins; short, for a signed URL may end up in a log
_TRIES, _PAUSE_S = 3, 0.5
_TIMEOUT = httpx.Timeout(60.0, read=600.0)  # some stores answer only when they have the bytes on all their disks
_PIECE_BYTES = 1 << 20
_ORPHAN_S = 24 * 3600.0  # bytes without a record for so long: whoever wrote them is not coming back
_IN_USE_S = 60.0  # a copy that was asked for within it may be about to be opened
_RECORDS_FOR_S = 60.0  # a record is asked for again after it
_MOST_RECORDS = 10_000


class ObjectStorage(Storage):
    """Files in a bucket.

    Args:
        store: bucket and prefix.
        spool: folder for local copies, on the file system of the temporary files; made if it is missing.
        spool_bytes: of copies that are kept; more lie there only while they are in use.
        now: Unix time, seconds.
    """

    shared = True

    def __init__(self, store: S3Store, spool: Path, spool_bytes: int, now: Callable[[], float] = time.time) -> None:
        spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._store, self._spool, self._spool_bytes, self._now = store, spool, spool_bytes, now
        self._http = httpx.Client(timeout=_TIMEOUT)
        self._lock = threading.Lock()
        self._fetching = [threading.Lock() for _ in range(64)]  # by name: one copy is fetched once at a time
        self._records: dict[str, tuple[float, str]] = {}

    def close(self) -> None:
        """See `Storage.close`."""
        self._http.close()

    def put(self, temporary: Path, name: str, record: str = "", expires_at: int | None = None) -> None:
        """See `Storage.put`. The bytes stream from the file; memory does not grow with it."""
        self._send(temporary, f"data/{name}")
        with _telling():
            self._store.put(f"records/{name}/{expires_at or 0}", record.encode(), use_multipart=False)
        os.utime(temporary)  # the copy is as good as new
        temporary.rename(self._spool / name)
        self._make_room(0)

    def _send(self, temporary: Path, key: str) -> None:
        import obstore

        for attempt in range(_TRIES):
            if attempt:
                time.sleep(_PAUSE_S * 2**attempt)
            with _telling():
                url = obstore.sign(self._store, "PUT", key, _SIGNED_FOR)
            try:
                with temporary.open("rb") as file:
                    size = str(os.fstat(file.fileno()).st_size)
                    pieces = iter(lambda: file.read(_PIECE_BYTES), b"")
                    answer = self._http.put(url, content=pieces, headers={"content-length": size})
            except httpx.HTTPError as error:
                told = type(error).__name__  # its words may hold the URL, which is signed
                continue
            if answer.is_success:
                return
            told = f"HTTP status {answer.status_code}"
            if answer.status_code < 500 and answer.status_code != 429:
                break
        raise StorageUnavailableError(f"the object store did not take a file: {told}")

    def local_path(self, name: str) -> Path:
        """See `Storage.local_path`; what is not in the spool is fetched."""
        path = self._spool / name
        with self._fetching[hash(name) % len(self._fetching)]:
            try:
                os.utime(path)  # it is in use
            except FileNotFoundError:
                self._fetch(name, path)
        return path

    def _fetch(self, name: str, path: Path) -> None:
        part = self._spool / f".{name}.{secrets.token_hex(4)}"
        try:
            with _telling(), part.open("xb") as file:
                part.chmod(0o600)
                found = self._store.get(f"data/{name}")
                self._make_room(found.meta["size"])
                for piece in found.stream(min_chunk_size=_PIECE_BYTES):
                    file.write(memoryview(piece))
                if file.tell() != found.meta["size"]:
                    raise StorageUnavailableError("the object store broke off a file")
            part.rename(path)
        finally:
            part.unlink(missing_ok=True)

    def _make_room(self, coming: int) -> None:
        """Remove the copies that were used longest ago, until so many bytes more fit in."""
        with self._lock:
            copies = sorted((status.st_mtime, status.st_size, path) for path, status in self._copies())
            size = sum(entry[1] for entry in copies) + coming
            for used, one, path in copies:
                if size <= self._spool_bytes or used > time.time() - _IN_USE_S:
                    break
                path.unlink(missing_ok=True)
                size -= one

    def _copies(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self._spool.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if not path.name.startswith("."):
                    yield path, path.stat()

    def record(self, name: str) -> str | None:
        """See `Storage.record`. A file that another server deletes is known here for up to a minute."""
        now = time.monotonic()
        asked, known = self._records.get(name, (0.0, ""))
        if known and now - asked < _RECORDS_FOR_S:
            return known
        self._records.pop(name, None)
        with _telling():
            keys = [meta["path"] for meta in self._listed(f"records/{name}")]
            try:
                found = bytes(self._store.get(keys[0]).bytes()).decode() if keys else None
            except FileNotFoundError:  # deleted in this moment
                found = None
        if found is not None:
            if len(self._records) >= _MOST_RECORDS:
                self._records.clear()
            self._records[name] = now, found
        return found

    def delete(self, name: str) -> None:
        """See `Storage.delete`."""
        self._records.pop(name, None)
        with _telling():
            for meta in self._listed(f"records/{name}"):
                self._remove(meta["path"])
            self._remove(f"data/{name}")
        (self._spool / name).unlink(missing_ok=True)

    def _remove(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._store.delete(key)

    def _listed(self, prefix: str) -> Iterator[Any]:
        for page in self._store.list(prefix, chunk_size=1000):
            yield from page

    def names(self) -> Iterator[str]:
        """None: that a file is not in this server's index does not mean that it is nobody's. See `sweep`."""
        return iter(())

    def sweep(self, ours: Collection[str]) -> set[str]:
        """See `Storage.sweep`: expired files, bytes that never got a record, and copies of files that are gone."""
        now = self._now()
        with _telling():
            expiries = {
                name: int(at) for name, at in (meta["path"].split("/")[-2:] for meta in self._listed("records"))
            }
            stored = {meta["path"].split("/")[-1]: meta["last_modified"].timestamp() for meta in self._listed("data")}
        expired = {name for name, at in expiries.items() if 0 < at <= now}
        orphans = {name for name, written in stored.items() if name not in expiries and written < now - _ORPHAN_S}
        for name in expired | orphans:
            self.delete(name)
        living = expiries.keys() - expired
        for path, status in self._copies():
            if path.name not in living and status.st_mtime < time.time() - _IN_USE_S:
                path.unlink(missing_ok=True)
        for path in self._spool.glob(".*"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - 3600:  # the copy of a process that was killed
                    path.unlink()
        return set(ours) - living


def open_bucket(url: str) -> S3Store:
    """The bucket and prefix of `s3://BUCKET[/PREFIX]`; region, endpoint and credentials are those of the environment.

    Raises:
        ValueError: the URL, or what the environment says, is wrong.
        ModuleNotFoundError: obstore is not installed.
    """
    from obstore.exceptions import BaseError
    from obstore.store import S3Store

    endpoint = (
        os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT")
    )
    plain = (endpoint or "").startswith("http://")  # said in so many words; nothing else leads to it
    try:
        return S3Store.from_url(
            url,
            # Half a minute, the default, is for whole answers: too short for a large file.
            client_options={"timeout": "1h", "connect_timeout": "10s", "allow_http": plain},
            # The default goes on for three minutes, in which somebody waits for the answer to a question.
            retry_config={"max_retries": _TRIES - 1, "retry_timeout": datetime.timedelta(seconds=20)},
        )
    except BaseError as error:
        raise ValueError(str(error).splitlines()[0]) from None


@contextlib.contextmanager
def _telling() -> Iterator[None]:
    """Turn what obstore raises into `StorageUnavailableError`; that there is no such object stays what it is."""
    from obstore.exceptions import BaseError

    try:
        yield
    except BaseError as error:
        raise StorageUnavailableError(f"the object store cannot be used: {str(error).splitlines()[0]}") from None
