"""API keys with names: read from a file or the environment, known by their hashes alone, compared in constant time."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

FILE_VARIABLE = "COPE_API_KEY_FILE"
KEYS_VARIABLE = "COPE_API_KEYS"
_HASHED = "sha256="
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, repr=False)
class KeyRing:
    """The keys that open this server.

    Attributes:
        entries: name and SHA-256 digest of each key. A name may have several, so that a key can be replaced while the
            old one still works; they are one client, with one quota and one cache.
    """

    entries: tuple[tuple[str, bytes], ...] = ()

    def __post_init__(self) -> None:
        """Refuse a key that would open two doors.

        Raises:
            ValueError: the same key stands under two names.
        """
        owners: dict[bytes, str] = {}
        for name, digest in self.entries:
            if owners.setdefault(digest, name) != name:
                raise ValueError(f"{owners[digest]!r} and {name!r} have the same API key")

    def __repr__(self) -> str:
        return f"KeyRing({', '.join(sorted(self.names))})"

    @property
    def names(self) -> frozenset[str]:
        """Whose keys there are."""
        return frozenset(name for name, _ in self.entries)

    def owner(self, key: str) -> str | None:
        """The name of a key, or None if it opens nothing.

        All entries are compared, whichever fits, so the time tells nothing about them.
        """
        digest = _digest(key)
        found: str | None = None
        for name, known in self.entries:
            if secrets.compare_digest(digest, known):
                found = name
        return found

    def to_text(self) -> str:
        """The ring without any key in it, as `parse` reads it."""
        return "\n".join(f"{name}:{_HASHED}{digest.hex()}" for name, digest in self.entries)

    @classmethod
    def parse(cls, text: str) -> KeyRing:
        """Read one `name:key` or `name key` a line, or a JSON object of names and keys (or lists of keys).

        Empty lines and lines that begin with # are passed over. Instead of a key, `sha256=` and the hexadecimal digest
        of one may stand.

        Raises:
            ValueError: a line is none of these; the message has its number, never its content.
        """
        if text.lstrip().startswith("{"):
            return cls(tuple(_entry(name, key, f"entry {i + 1}") for i, (name, key) in enumerate(_json_pairs(text))))
        entries = []
        for number, line in enumerate(text.splitlines(), 1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            parts = re.split(r"\s*[:\s]\s*", line, maxsplit=1)
            if len(parts) != 2:
                raise ValueError(f"line {number} is not of the form name:key")
            entries.append(_entry(parts[0], parts[1], f"line {number}"))
        return cls(tuple(entries))

    @classmethod
    def from_file(cls, path: str | Path) -> KeyRing:
        """Read a file that others can neither read nor change.

        Raises:
            OSError: it cannot be read.
            ValueError: others may read or change it, it holds no key, or something that is none.
        """
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("the file of API keys is no regular file")
            if status.st_mode & (stat.S_IRWXO | stat.S_IWGRP):
                mode = stat.S_IMODE(status.st_mode)
                raise ValueError(f"the file of API keys has mode {mode:04o}: others may read or change it (chmod 600)")
            if status.st_uid not in (0, os.geteuid()):
                raise ValueError("the file of API keys belongs to another user")
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ValueError("the file of API keys is larger than 1 MiB")
        try:
            ring = cls.parse(content.decode())
        except UnicodeDecodeError:
            raise ValueError("the file of API keys is no UTF-8 text") from None
        except ValueError as error:
            raise ValueError(f"file of API keys: {error}") from None
        if not ring.entries:
            # Else a file that was emptied by mistake would open the server to everybody.
            raise ValueError("the file of API keys holds none")
        return ring

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> KeyRing:
        """Read the file that `COPE_API_KEY_FILE` names and the lines, or JSON, of `COPE_API_KEYS`.

        Raises:
            OSError, ValueError: as `from_file` and `parse`.
        """
        entries: list[tuple[str, bytes]] = []
        if path := environment.get(FILE_VARIABLE):
            entries += cls.from_file(path).entries
        if text := environment.get(KEYS_VARIABLE):
            try:
                entries += cls.parse(text).entries
            except ValueError as error:
                raise ValueError(f"{KEYS_VARIABLE}: {error}") from None
        return cls(tuple(entries))

    def with_unnamed(self, keys: Iterable[str]) -> KeyRing:
        """These and keys that came without a name, as vLLM's `--api-key` gives them: `key-1`, `key-2`, ..."""
        given = [_entry(f"key-{number}", key, "--api-key") for number, key in enumerate(keys, 1)]
        return KeyRing((*self.entries, *given))


def _json_pairs(text: str) -> list[tuple[str, str]]:
    """Names and keys of a JSON object."""
    try:
        found = json.loads(text)
    except ValueError:
        raise ValueError("it begins like JSON and is none") from None
    pairs: list[tuple[str, str]] = []
    for name, keys in found.items():
        for key in keys if isinstance(keys, list) else [keys]:
            if not isinstance(key, str):
                raise ValueError(f"the key of {name!r} is no text")
            pairs.append((name, key))
    return pairs


def _entry(name: str, key: str, where: str) -> tuple[str, bytes]:
    """Check a name and a key; the key stays out of every message."""
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"{where}: a name has up to 64 letters, digits, dots, dashes and underscores")
    if key.startswith(_HASHED):
        digest = key.removeprefix(_HASHED)
        if re.fullmatch("[0-9a-fA-F]{64}", digest) is None:
            raise ValueError(f"{where}: after {_HASHED} come the 64 hexadecimal digits of a digest")
        return name, bytes.fromhex(digest)
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(f"{where}: a key is of visible ASCII characters, without spaces")
    return name, _digest(key)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
