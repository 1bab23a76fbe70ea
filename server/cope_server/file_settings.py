"""Where uploaded files are kept and how much: `cope serve` options, which travel as environment variables."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cope_server.codec_settings import read_numbers

if TYPE_CHECKING:
    from cope_server.files.storage import Storage
    from cope_server.files.store import FileLimits, FileStore

_PREFIX = "COPE_FILES_"


@dataclass(frozen=True, slots=True)
class FileSettings:
    """The Files API of a server.

    Attributes:
        dir: the folder; empty is `cope-serve/files` in the user's state directory.
        max_mb: size of one file, MiB.
        quota_mb: size of all files of one API key, MiB.
        quota_count: files of one API key.
        spool_mb: size of the local copies of files in an object store, MiB.
        storage: `s3://BUCKET[/PREFIX]`; empty is the folder.
    """

    dir: str = ""
    max_mb: int = 4096
    quota_mb: int = 65536
    quota_count: int = 10_000
    spool_mb: int = 16384
    storage: str = ""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> FileSettings:
        """Read `COPE_FILES_DIR`, `COPE_FILES_MAX_MB` and so on.

        Raises:
            ValueError: a value is no number, or out of range; the message names the variable.
        """
        numbers = read_numbers(_PREFIX, _KINDS, environment)
        texts = {name: environment.get(_PREFIX + name.upper(), "").strip() for name in _TEXTS}
        settings = cls(**texts, **numbers)  # type: ignore[arg-type]  # all numbers are int
        settings._check_storage()
        return settings

    def _check_storage(self) -> None:
        from importlib.util import find_spec

        from cope_server.files.object_storage import MOST_FILE_BYTES

        if not self.storage:
            return
        if not _BUCKET.fullmatch(self.storage):
            raise ValueError(f"{_PREFIX}STORAGE must be s3://BUCKET or s3://BUCKET/PREFIX, not {self.storage!r}")
        if self.max_mb << 20 > MOST_FILE_BYTES:
            most = MOST_FILE_BYTES >> 20
            raise ValueError(f"{_PREFIX}MAX_MB must be at most {most} with {_PREFIX}STORAGE, not {self.max_mb}")
        if find_spec("obstore") is None:
            raise ValueError(f"{_PREFIX}STORAGE needs obstore: pip install 'cope-serve[s3]'")

    def folder(self) -> Path:
        """The folder that is meant."""
        if self.dir:
            return Path(self.dir).expanduser().absolute()
        state = os.environ.get("XDG_STATE_HOME", "")
        return (Path(state) if state.startswith("/") else Path.home() / ".local" / "state") / "cope-serve" / "files"

    def limits(self) -> FileLimits:
        """What may be kept."""
        from cope_server.files.store import FileLimits

        return FileLimits(self.max_mb << 20, self.quota_mb << 20, self.quota_count)

    def open_store(self) -> FileStore:
        """Open the folder and the object store, if there is one, and remove what killed servers have left in them.

        Raises:
            ValueError: it cannot be used; the message names the variable.
        """
        import sqlite3

        from cope_server.files.storage import StorageUnavailableError
        from cope_server.files.store import FileStore

        try:
            store = FileStore(self.folder(), self.limits(), self._open_storage())
            store.sweep()
        except StorageUnavailableError as error:
            raise ValueError(f"{_PREFIX}STORAGE: {self.storage}: {error}") from error
        except (OSError, sqlite3.Error) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            message = f"{_PREFIX}DIR: uploaded files cannot be kept in {self.folder()}: {reason}"
            raise ValueError(message) from error
        return store

    def _open_storage(self) -> Storage | None:
        from cope_server.files.object_storage import ObjectStorage, open_bucket

        if not self.storage:
            return None
        try:
            bucket = open_bucket(self.storage)
        except ValueError as error:
            raise ValueError(f"{_PREFIX}STORAGE: {error}") from error
        return ObjectStorage(bucket, self.folder() / "spool", self.spool_mb << 20)


_BUCKET = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9!_.*'()/-]*)?")
_TEXTS = {"dir": "DIR", "storage": "URL"}
# option: (name, type, lowest value)
_KINDS: tuple[tuple[str, type[int], float], ...] = (
    ("max_mb", int, 1),
    ("quota_mb", int, 1),
    ("quota_count", int, 1),
    ("spool_mb", int, 1),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--files-dir`, `--files-storage`, `--files-max-mb` and so on."""
    for name in (*_TEXTS, *(name for name, _, _ in _KINDS)):
        parser.add_argument(f"--files-{name.replace('_', '-')}", metavar=_TEXTS.get(name, "N"))


def to_environment(arguments: argparse.Namespace, environment: MutableMapping[str, str] = os.environ) -> None:
    """Put the options given into the environment, before what it held, and check all of it.

    An object store is not asked here: its client has threads, which the processes that vLLM forks would not have.

    Raises:
        ValueError: as `FileSettings.from_environment` and `FileSettings.open_store`.
    """
    for name in (*_TEXTS, *(name for name, _, _ in _KINDS)):
        value = getattr(arguments, f"files_{name}", None)
        if value is not None:
            environment[_PREFIX + name.upper()] = value
    replace(FileSettings.from_environment(environment), storage="").open_store().close()
