"""Whose caches a request may use: one API key's requests are not answered from what another key's have left there.

A hit in a cache is faster than a miss. Who may send any prompt or video and watch the clock could so find out what
others have sent. Each API key therefore has a salt, which goes into the keys of every cache: the prefix cache, vLLM's
caches of media, and our cache of primitives. Requests without a key, and a server that shares its caches, have no salt.
"""

from __future__ import annotations

import hashlib
import hmac
from contextvars import ContextVar

# The salt of the request that is being handled. vLLM loads media in tasks whose contexts are copies of the request's.
current: ContextVar[str | None] = ContextVar("cope_salt", default=None)
_salts: frozenset[str] = frozenset()


def install(salts: frozenset[str]) -> None:
    """Separate the keys that have these salts from here on; an empty set shares all caches."""
    global _salts
    _salts = salts


def required() -> bool:
    """Whether requests are separated."""
    return bool(_salts)


def make_salt(secret: str, name: str) -> str:
    """The salt of the key of this name; who does not know the secret cannot make it."""
    return hmac.new(secret.encode(), name.encode(), hashlib.sha256).hexdigest()[:32]


def combined(salt: str, given: str | None) -> str:
    """The `cache_salt` for the engine: the key's, or one within the key's that a client chose.

    Nothing that a client sends leads into another key's caches.
    """
    return salt if given is None else hmac.new(salt.encode(), given.encode(), hashlib.sha256).hexdigest()


def name_for(uuid: str) -> str:
    """A client's name for a medium, as it stands among those of all keys."""
    salt = current.get()
    return uuid if salt is None else f"{salt}/{uuid}"


def is_separate(uuid: str) -> bool:
    """Whether `name_for` made a name, so that no other key's request can have made the same."""
    salt, slash, _ = uuid.partition("/")
    return bool(slash) and salt in _salts
