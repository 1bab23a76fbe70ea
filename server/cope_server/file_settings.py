"""Where uploaded files are kept and how much: `cope serve` options, which travel as environment variables."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cope_server.codec_settings import read_numbers

if TYPE_CHECKING:
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
    """

    dir: str = ""
    max_mb: int = 4096
    quota_mb: int = 65536
    quota_count: int = 10_000

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> FileSettings:
        """Read `COPE_FILES_DIR`, `COPE_FILES_MAX_MB` and so on.

        Raises:
            ValueError: a value is no number, or out of range; the message names the variable.
        """
        numbers = read_numbers(_PREFIX, _KINDS, environment)
        return cls(environment.get(_PREFIX + "DIR", "").strip(), **numbers)  # type: ignore[arg-type]  # all of them int

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
        """Open the folder, and remove what killed servers have left in it.

        Raises:
            ValueError: it cannot be used; the message names the variable.
        """
        import sqlite3

        from cope_server.files.store import FileStore

        try:
            store = FileStore(self.folder(), self.limits())
            store.sweep()
        except (OSError, sqlite3.Error) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            message = f"{_PREFIX}DIR: uploaded files cannot be kept in {self.folder()}: {reason}"
            raise ValueError(message) from error
        return store


# option: (name, type, lowest value)
_KINDS: tuple[tuple[str, type[int], float], ...] = (
    ("max_mb", int, 1),
    ("quota_mb", int, 1),
    ("quota_count", int, 1),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--files-dir`, `--files-max-mb` and so on."""
    for name in ("dir", *(name for name, _, _ in _KINDS)):
        parser.add_argument(f"--files-{name.replace('_', '-')}", metavar="DIR" if name == "dir" else "N")


def to_environment(arguments: argparse.Namespace, environment: MutableMapping[str, str] = os.environ) -> None:
    """Put the options given into the environment, before what it held, and check all of it.

    Raises:
        ValueError: as `FileSettings.from_environment` and `FileSettings.open_store`.
    """
    for name in ("dir", *(name for name, _, _ in _KINDS)):
        value = getattr(arguments, f"files_{name}", None)
        if value is not None:
            environment[_PREFIX + name.upper()] = value
    FileSettings.from_environment(environment).open_store().close()
