"""Who may come in, and whose caches they use: the middleware that asks for API keys, and the options for it."""

from __future__ import annotations

import argparse
import logging
import os
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from cope_model import isolation
from cope_server.errors import refusal
from cope_server.keys import FILE_VARIABLE, KEYS_VARIABLE, KeyRing

if TYPE_CHECKING:
    from fastapi import FastAPI

logger = logging.getLogger("vllm.cope_server.access")  # below vLLM's logger, so that its settings apply

SHARE_VARIABLE = "COPE_SHARE_CACHES"
SECRET_VARIABLE = "COPE_CACHE_SECRET"  # noqa: S105 - a name
PRIVATE_VARIABLE = "COPE_ALLOW_PRIVATE_MEDIA"
_OWNER = "cope_key"
# What probes and Prometheus ask for, and nothing that shows or costs anything of a client's.
_OPEN = frozenset({"/health", "/ping", "/metrics"})


def key_name(scope: Scope) -> str | None:
    """The name of the API key that a request came with; None where the server asks for none."""
    name = scope.get("state", {}).get(_OWNER)
    return name if isinstance(name, str) else None


class KeyMiddleware:
    """Answers 401 to requests without a key, except for probes, and notes the key's name in the scope's state.

    vLLM's own middleware guards paths that begin with /v1, /v2, /inference and /cohere, and leaves `/invocations`,
    `/tokenize`, `/docs` and others open; this one guards everything that it does not know to be harmless.

    Args:
        app: the application behind it.
        ring: the keys.
        salts: of each key's name, its salt; empty where caches are shared.
    """

    def __init__(self, app: ASGIApp, ring: KeyRing, salts: Mapping[str, str]) -> None:
        self.app = app
        self.ring = ring
        self.salts = salts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or answer it."""
        if scope["type"] not in ("http", "websocket") or _is_open(scope):
            await self.app(scope, receive, send)
            return
        kind, _, key = (Headers(scope=scope).get("authorization") or "").partition(" ")
        owner = self.ring.owner(key.strip()) if kind.lower() == "bearer" else None
        if owner is None:
            await _refuse(scope, receive, send, "no" if not key else "wrong")
            return
        scope.setdefault("state", {})[_OWNER] = owner
        token = isolation.current.set(self.salts.get(owner))
        try:
            await self.app(scope, receive, send)
        finally:
            isolation.current.reset(token)


def route_of(scope: Scope) -> str:
    """The path that is asked for, without the prefix of `--root-path` and slashes at its end."""
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return path.rstrip("/")


def _is_open(scope: Scope) -> bool:
    """Whether anybody may ask this."""
    return scope["type"] == "http" and scope["method"] in ("GET", "HEAD", "POST") and route_of(scope) in _OPEN


async def _refuse(scope: Scope, receive: Receive, send: Send, how: str) -> None:
    """OpenAI's answer to a missing or wrong key."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": "invalid API key"})
        return
    message = "give an API key: Authorization: Bearer KEY" if how == "no" else "the API key is not known here"
    await refusal("invalid_api_key", message, headers={"WWW-Authenticate": "Bearer"})(scope, receive, send)


def guard(app: FastAPI, environment: Mapping[str, str] = os.environ) -> None:
    """Put the middleware before an app if there are keys, and separate their caches unless they are shared.

    Raises:
        OSError, ValueError: the keys cannot be read.
    """
    ring = KeyRing.from_environment(environment)
    salts: dict[str, str] = {}
    if ring.entries and environment.get(SHARE_VARIABLE, "0") in ("", "0"):
        secret = environment.get(SECRET_VARIABLE) or secrets.token_hex(32)
        salts = {name: isolation.make_salt(secret, name) for name in ring.names}
    isolation.install(frozenset(salts.values()))
    if ring.entries:
        app.add_middleware(KeyMiddleware, ring=ring, salts=salts)
        logger.info("API keys of %s; caches are %s", ", ".join(sorted(ring.names)), "separate" if salts else "shared")


def salt_engine(engine: Any) -> None:
    """Salt the prefix cache for whatever reaches the engine, on any route.

    The field `cache_salt` of a request is the client's, and many routes have one. They all end in the engine client's
    `generate`, so it is that one method of that one object which learns of salts.
    """
    generate: Callable[..., Any] = engine.generate

    def generate_salted(prompt: Any, *args: Any, **kwargs: Any) -> Any:
        salt = isolation.current.get()
        return generate(prompt if salt is None else _salted(prompt, salt), *args, **kwargs)

    engine.generate = generate_salted


def _salted(prompt: Any, salt: str) -> Any:
    """A prompt whose prefix is found among the key's own only.

    Raises:
        TypeError: it is none of the kinds that routes hand to the engine; better no answer than a shared cache.
    """
    if isinstance(prompt, Mapping):
        return {**prompt, "cache_salt": isolation.combined(salt, prompt.get("cache_salt"))}
    if isinstance(prompt, str):
        return {"prompt": prompt, "cache_salt": salt}
    if isinstance(prompt, Sequence):
        return {"prompt_token_ids": list(prompt), "cache_salt": salt}
    if isinstance(prompt, AsyncGenerator):
        return _salted_pieces(prompt, salt)
    raise TypeError(f"a prompt of type {type(prompt).__name__} cannot be salted")


async def _salted_pieces(pieces: AsyncGenerator[Any, None], salt: str) -> AsyncGenerator[Any, None]:
    """vLLM's `StreamingInput`s with their prompts salted."""
    import dataclasses

    async for piece in pieces:
        yield dataclasses.replace(piece, prompt=_salted(piece.prompt, salt))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--api-key-file`, `--share-caches` and `--allow-private-media`."""
    parser.add_argument("--api-key-file", metavar="FILE", help="names and API keys, one name:key a line, or JSON")
    parser.add_argument("--share-caches", action="store_true", help="let the keys' requests hit each other's caches")
    parser.add_argument(
        "--allow-private-media",
        action="append",
        metavar="HOST",
        help="a host, address or network that media URLs may lead to although it is not public; several are possible",
    )


def to_environment(
    arguments: argparse.Namespace,
    api_keys: Sequence[str] | None = None,
    environment: MutableMapping[str, str] = os.environ,
) -> None:
    """Put the options given into the environment, before what it held, and check all of it.

    vLLM starts API-server processes of its own, to which an environment is all that comes along. Of the keys only their
    hashes go there.

    Args:
        arguments: of `add_arguments`.
        api_keys: vLLM's `--api-key`; its `VLLM_API_KEY` holds without. Their keys are ours from here on: vLLM's
            middleware would refuse those with names.
        environment: to change.

    Raises:
        OSError, ValueError: keys cannot be read, or a host is none.
    """
    from cope_model.addresses import AddressPolicy

    if arguments.api_key_file is not None:
        environment[FILE_VARIABLE] = arguments.api_key_file
    if arguments.share_caches:
        environment[SHARE_VARIABLE] = "1"
    if arguments.allow_private_media:
        environment[PRIVATE_VARIABLE] = ",".join(arguments.allow_private_media)
    AddressPolicy.from_environment(environment=environment)
    unnamed = [key for key in api_keys or [environment.get("VLLM_API_KEY", "")] if key]
    ring = KeyRing.from_environment(environment).with_unnamed(unnamed)
    for variable in (FILE_VARIABLE, KEYS_VARIABLE, "VLLM_API_KEY"):
        environment.pop(variable, None)
    if ring.entries:
        environment[KEYS_VARIABLE] = ring.to_text()
        environment.setdefault(SECRET_VARIABLE, secrets.token_hex(32))
