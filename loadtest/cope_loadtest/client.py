"""Sends one request, keeps its clocks, and says how it ended."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from cope_loadtest.records import Record
from cope_loadtest.sse import ChatEvent, EventParser, NotEventsError, read_chat_event

CHAT_PATH = "/v1/chat/completions"
_CONNECT_S = 10.0
# Shorter than any usual server's (uvicorn: 5 s), so that no request is sent into a connection that is just being
# closed.
_KEEP_ALIVE_S = 2.0
_DRAIN_S = 1.0
_PIECE_BYTES = 256 << 10
_TOLD = 300  # characters of a server's words that are kept
_BUSY = (429, 503)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for a request.

    Attributes:
        stall_s: for the next byte, in either direction.
        timeout_s: for all of it, from the moment it is taken up.
    """

    stall_s: float = 120.0
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        for name in ("stall_s", "timeout_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be above 0, not {value!r}")


class Body(httpx.AsyncByteStream):
    """A request's body in parts, so that requests for the same clip share its bytes.

    Args:
        parts: what to send, in order.
    """

    def __init__(self, parts: Sequence[bytes]) -> None:
        self.parts = parts
        self.size = sum(map(len, parts))

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Pieces of at most 256 KiB: a whole video as one would be copied whole."""
        for part in self.parts:
            if len(part) <= _PIECE_BYTES:
                yield part
                continue
            view = memoryview(part)
            for start in range(0, len(part), _PIECE_BYTES):
                yield bytes(view[start : start + _PIECE_BYTES])


def make_client(base_url: str, api_key: str | None = None) -> httpx.AsyncClient:
    """A client with as many keep-alive connections as there are requests at a time."""
    headers = {"accept": "text/event-stream", "accept-encoding": "identity", "user-agent": "cope-loadtest"}
    if api_key:
        headers["authorization"] = f"Bearer {api_key}"
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=_KEEP_ALIVE_S)
    # Proxies and .netrc of the environment would measure something else than the server.
    return httpx.AsyncClient(base_url=base_url, headers=headers, limits=limits, trust_env=False)


async def send(client: httpx.AsyncClient, body: Body, record: Record, patience: Patience) -> None:
    """Send a streaming chat request and fill in the record: afterwards it has an outcome, whatever happened.

    Args:
        client: of `make_client`.
        body: JSON with `"stream": true`.
        record: scheduled; the rest is set here.
        patience: when to give up.

    Raises:
        asyncio.CancelledError: the caller ended it; the record's outcome is then `cut_off`.
    """
    record.body_bytes = body.size
    try:
        async with asyncio.timeout(patience.timeout_s):
            await _exchange(client, body, record, patience)
    except asyncio.CancelledError:
        _end(record, "cut_off", "the run ended")
        raise
    except TimeoutError:
        _end(record, "timed_out", f"not complete after {patience.timeout_s:g} s")
    except NotEventsError as error:
        _end(record, "not_sse", str(error))
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        _end(record, "connect_error", _words(error))
    except (httpx.ReadTimeout, httpx.WriteTimeout):
        _end(record, "stalled", f"nothing moved for {patience.stall_s:g} s")
    except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, OSError) as error:
        _end(record, "disconnected" if record.first_byte is None else "broken_stream", _words(error))


async def _exchange(client: httpx.AsyncClient, body: Body, record: Record, patience: Patience) -> None:
    async def trace(event: str, _: dict[str, Any]) -> None:
        # httpcore's own names. A request that is sent again (over another connection) starts its clocks again.
        if event == "http11.send_request_headers.started":
            record.sent = time.perf_counter()
        elif event == "http11.send_request_body.complete":
            record.body_sent = time.perf_counter()
        elif event == "http11.receive_response_headers.complete":
            record.first_byte = time.perf_counter()

    request = client.build_request(
        "POST",
        CHAT_PATH,
        content=body,
        headers={"content-type": "application/json", "content-length": str(body.size)},
        timeout=httpx.Timeout(patience.stall_s, connect=min(_CONNECT_S, patience.stall_s), pool=None),
        extensions={"trace": trace},
    )
    response = await client.send(request, stream=True)
    try:
        record.status = response.status_code
        if response.status_code != 200:
            _end(record, _class_of(response.status_code), await _error_words(response))
            return
        kind = response.headers.get("content-type", "")
        if not kind.startswith("text/event-stream"):
            _end(record, "not_sse", f"content-type {kind or 'missing'}")
            return
        await _read(response, record)
    finally:
        await response.aclose()


async def _read(response: httpx.Response, record: Record) -> None:
    parser = EventParser()
    chunks = response.aiter_raw()
    async for chunk in chunks:
        now = time.perf_counter()
        for data in parser.feed(chunk):
            event = read_chat_event(data)
            if event.error is not None:
                _end(record, "error_event", event.error[:_TOLD])
                return
            _note(record, event, now)
            if event.finished:
                record.finished = now
            if event.done:
                if record.first_token is None:
                    record.first_token = record.finished  # the model stopped at once: its first token was the end
                if record.first_token is None:
                    _end(record, "broken_stream", "the stream ended without a token")
                else:
                    _end(record, "ok", None, now)
                await _drain(chunks)
                return
    _end(record, "broken_stream", "the stream ended without its end mark")


async def _drain(chunks: AsyncIterator[bytes]) -> None:
    """Read on to the end of the body, which lets the connection be used again; the answer itself is complete."""
    try:
        async with asyncio.timeout(_DRAIN_S):
            async for _ in chunks:
                pass
    except (TimeoutError, httpx.HTTPError):
        pass  # then it cannot be used again


def _note(record: Record, event: ChatEvent, now: float) -> None:
    if event.has_content:
        if record.first_token is None:
            record.first_token = now
        record.tokens.append(now)
        record.text_length += len(event.text)
    if event.usage is not None:
        record.usage = event.usage


def _end(record: Record, outcome: str, detail: str | None, now: float | None = None) -> None:
    """Set the outcome, once: an error while closing does not change how a request has ended."""
    if not record.outcome:
        record.outcome, record.detail = outcome, detail
        record.last = time.perf_counter() if now is None else now


def _class_of(status: int) -> str:
    if status in _BUSY:
        return "busy"
    if 400 <= status < 500:
        return "refused"
    return "server_error" if status >= 500 else "not_sse"


async def _error_words(response: httpx.Response) -> str:
    """What an error answer says; its first 64 KiB."""
    words = bytearray()
    try:
        async for chunk in response.aiter_raw():
            words += chunk
            if len(words) > 65536:
                break
    except httpx.HTTPError:
        pass  # the status alone tells the class
    said = f"HTTP {response.status_code}"
    try:
        error = json.loads(words)["error"]
        said += f": {error['message']} [{error.get('code')}]"
    except (ValueError, KeyError, TypeError, AttributeError):
        text = words.decode(errors="replace").strip()
        said += f": {text}" if text else ""
    return said[:_TOLD]


def _words(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:_TOLD]
