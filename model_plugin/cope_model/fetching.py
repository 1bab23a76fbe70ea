"""Fetches media over HTTP without being turned against the network it runs in.

The address that was checked is the one that is connected to: names are looked up by a resolver that drops what may not
be fetched from, and the socket's maker looks once more. Redirects are followed here, one by one, each checked like the
first URL. Size, time, redirects and attempts are bounded together. Nothing is kept between fetches: no cookies, no
connections, no proxy of the environment, which would look names up by itself, and no .netrc.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import partial
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from vllm import envs
from vllm.connections import HTTPConnection, MediaDownloadSizeExceededError
from yarl import URL

from cope_model.addresses import AddressPolicy, RefusedUrlError

MAX_REDIRECTS = 5
_CHUNK_BYTES = 64 * 1024
_FIRST_PAUSE_S = 0.2  # before the second attempt; each further one waits four times as long
_MIB = 1 << 20
# A look-up cannot be called back, and an attacker's name server may take its time: threads that nothing else needs.
_lookups = ThreadPoolExecutor(32, thread_name_prefix="cope-lookup")
# Told of the bytes that a fetch puts into memory, for the part that is being loaded; what it raises ends the fetch.
holding: ContextVar[Callable[[int], None] | None] = ContextVar("cope_holding", default=None)


class TooManyRedirectsError(Exception):
    """A URL redirects, and redirects, or must not at all."""


class _Resolver(AbstractResolver):
    """Looks names up and keeps what the policy allows.

    Raises:
        RefusedUrlError: a name has addresses, and none of them is allowed.
    """

    def __init__(self, policy: AddressPolicy) -> None:
        self._policy = policy

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses to connect to."""
        look_up = partial(socket.getaddrinfo, host, port, family, socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(_lookups, look_up)
        results: list[ResolveResult] = []
        for kind, _, proto, _, place in found:
            address = str(place[0])
            if self._policy.allows(ipaddress.ip_address(address), host):
                result = ResolveResult(
                    hostname=host, host=address, port=port, family=kind, proto=proto, flags=socket.AI_NUMERICHOST
                )
                results.append(result)
        if found and not results:
            raise RefusedUrlError("the URL's host has no address that this server fetches from")
        return results

    async def close(self) -> None:
        """Nothing is held."""


def _session(policy: AddressPolicy, host: str) -> aiohttp.ClientSession:
    """A client for one request to one host."""

    def make_socket(info: Any) -> socket.socket:
        family, kind, proto, _, place = info
        if not policy.allows(ipaddress.ip_address(place[0]), host):
            raise PermissionError("not an address to fetch from")  # nothing comes here that the resolver has not passed
        return socket.socket(family, kind, proto)

    connector = aiohttp.TCPConnector(
        resolver=_Resolver(policy), use_dns_cache=False, force_close=True, socket_factory=make_socket
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        # The fetch as a whole has a time limit; aiohttp's own would count each redirect anew.
        timeout=aiohttp.ClientTimeout(total=None),
        headers={"User-Agent": "cope-serve", "Accept": "*/*", "Accept-Encoding": "identity"},
    )


async def fetch(
    url: str,
    write: Callable[[bytes], object],
    policy: AddressPolicy,
    *,
    restart: Callable[[], object],
    timeout_s: float | None = None,
    max_bytes: int | None = None,
    redirects: int = MAX_REDIRECTS,
) -> None:
    """Fetch a URL piece by piece.

    Args:
        url: of scheme http or https.
        write: takes the pieces, in order.
        policy: where to connect to.
        restart: forget what was written: another attempt begins.
        timeout_s: seconds for everything together: look-ups, redirects, attempts (`VLLM_MEDIA_FETCH_MAX_RETRIES`).
        max_bytes: size that is not exceeded, if less than `VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB`.
        redirects: how many to follow.

    Raises:
        RefusedUrlError: the URL, or one that it redirects to, leads where this server does not fetch from.
        TooManyRedirectsError: more redirects than that.
        MediaDownloadSizeExceededError: more bytes than that.
        TimeoutError: not there in time.
        aiohttp.ClientError, OSError: nobody answers, or with an error status.
        ValueError: the URL is malformed.
    """
    limit = size_limit(max_bytes)
    attempts = max(1, envs.VLLM_MEDIA_FETCH_MAX_RETRIES)
    async with asyncio.timeout(timeout_s):
        for attempt in range(attempts):
            try:
                return await _attempt(URL(url), write, policy, limit, redirects)
            except (aiohttp.ClientError, OSError) as error:
                if attempt + 1 == attempts or not _may_pass(error):
                    raise
            await asyncio.sleep(_FIRST_PAUSE_S * 4**attempt)
            restart()


async def _attempt(
    url: URL, write: Callable[[bytes], object], policy: AddressPolicy, limit: int | None, redirects: int
) -> None:
    """One attempt, with its redirects."""
    for _ in range(redirects + 1):
        if url.scheme not in ("http", "https"):
            raise RefusedUrlError("the URL leads to another scheme than http and https")
        if not url.raw_host:
            raise ValueError("no host")
        policy.check_host(url.raw_host)
        async with _session(policy, url.raw_host) as session, session.get(url, allow_redirects=False) as response:
            place = response.headers.get("Location")
            if response.status not in (301, 302, 303, 307, 308) or place is None:
                response.raise_for_status()
                await _receive(response, write, limit)
                return
        url = url.join(URL(place))
    raise TooManyRedirectsError(f"the URL redirects more than {redirects} times" if redirects else "the URL redirects")


async def _receive(response: aiohttp.ClientResponse, write: Callable[[bytes], object], limit: int | None) -> None:
    """Hand a body on; what an encoding inflates counts at its full size."""
    if limit is not None and (response.content_length or 0) > limit:
        raise MediaDownloadSizeExceededError(limit, response.content_length)
    received = 0
    async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
        received += len(chunk)
        if limit is not None and received > limit:
            raise MediaDownloadSizeExceededError(limit, received)
        write(chunk)


def size_limit(max_bytes: int | None) -> int | None:
    """The smaller one of a limit and the server's own, bytes; None if there is neither."""
    allowed = envs.VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB * _MIB
    given = [limit for limit in (max_bytes, allowed if allowed > 0 else None) if limit is not None]
    return min(given, default=None)


def redirects_followed() -> int:
    """How many redirects the server follows (`VLLM_MEDIA_URL_ALLOW_REDIRECTS`)."""
    return MAX_REDIRECTS if envs.VLLM_MEDIA_URL_ALLOW_REDIRECTS else 0


def _may_pass(error: Exception) -> bool:
    """Whether another attempt may go better."""
    if isinstance(error, aiohttp.ClientResponseError):
        return error.status >= 500 or error.status in (408, 429)
    if isinstance(error, aiohttp.InvalidURL | aiohttp.ClientConnectorCertificateError):
        return False
    return isinstance(error, aiohttp.ClientConnectionError | aiohttp.ClientPayloadError | ConnectionError)


class GuardedConnection(HTTPConnection):  # type: ignore[misc]
    """`fetch` where vLLM expects its own connection: the media of all kinds go through it.

    Args:
        policy: where to connect to.
    """

    def __init__(self, policy: AddressPolicy) -> None:
        super().__init__()
        self.policy = policy

    async def async_get_bytes(
        self,
        url: str,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - vLLM's signature
        allow_redirects: bool = True,
        max_bytes: int | None = None,
    ) -> bytes:
        """The whole body, in memory; raises as `fetch`."""
        body, hold = bytearray(), holding.get()

        def write(piece: bytes) -> None:
            if hold is not None:
                hold(len(piece))
            body.extend(piece)

        redirects = MAX_REDIRECTS if allow_redirects else 0
        limits = {"timeout_s": timeout, "max_bytes": max_bytes, "redirects": redirects}
        await fetch(url, write, self.policy, restart=body.clear, **limits)  # type: ignore[arg-type]
        return bytes(body)

    def get_bytes(
        self, url: str, *, timeout: float | None = None, allow_redirects: bool = True, max_bytes: int | None = None
    ) -> bytes:
        """`async_get_bytes` for whoever has no event loop, or must not wait in it."""
        outcome: list[bytes | BaseException] = []

        async def get() -> bytes:
            limits = {"allow_redirects": allow_redirects, "max_bytes": max_bytes}
            return await self.async_get_bytes(url, timeout=timeout, **limits)  # type: ignore[arg-type]

        def run() -> None:
            try:
                outcome.append(asyncio.run(get()))
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                outcome.append(error)

        # In a thread of its own: the caller's may be running a loop already (a notebook's does).
        thread = threading.Thread(target=run, name="cope-fetch")
        thread.start()
        thread.join()
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return outcome[0]

    def get_response(self, *_: Any, **__: Any) -> Any:
        """Never: it would connect anywhere."""
        raise RuntimeError("media are fetched by get_bytes")

    async def get_async_response(self, *_: Any, **__: Any) -> Any:
        """Never: it would connect anywhere."""
        raise RuntimeError("media are fetched by async_get_bytes")
