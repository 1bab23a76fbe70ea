"""The clock of a request: starts at its first byte, notes the first token and the end."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cope_server.metrics import E2E_LATENCY, TIME_TO_FIRST_TOKEN

CHAT_PATH = "/v1/chat/completions"
_CLOCK = "cope_clock"


@dataclass(slots=True)
class RequestClock:
    """Times of one request, seconds of `time.perf_counter`.

    Attributes:
        started: the server took up the request; its body may still be on the way.
        first_token: the first chunk with content was sent; None before that and for answers in one piece.
        input: what the request carried: text, image, codec or dense.
    """

    started: float
    first_token: float | None = None
    input: str = "text"


def clock_of(scope: Scope) -> RequestClock | None:
    """The clock that `ClockMiddleware` started for this request."""
    found = scope.get("state", {}).get(_CLOCK)
    return found if isinstance(found, RequestClock) else None


class ClockMiddleware:
    """Observes TTFT and end-to-end latency of chat requests, where the bytes leave the server.

    A pure ASGI middleware: it is called when the request's headers have arrived, before its body (a video in a data
    URI takes a while) is read or parsed.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request with a clock."""
        if scope["type"] != "http" or not scope["path"].endswith(CHAT_PATH) or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        clock = RequestClock(time.perf_counter())
        scope.setdefault("state", {})[_CLOCK] = clock
        ok = streaming = False

        async def observed_send(message: Message) -> None:
            nonlocal ok, streaming
            if message["type"] == "http.response.start":
                ok = message["status"] == 200
                streaming = any(
                    name.lower() == b"content-type" and value.startswith(b"text/event-stream")
                    for name, value in message["headers"]
                )
            elif message["type"] == "http.response.body" and ok:
                now = time.perf_counter()
                if streaming and clock.first_token is None and has_content(message.get("body", b"")):
                    clock.first_token = now
                    TIME_TO_FIRST_TOKEN.labels(clock.input).observe(now - clock.started)
                if not message.get("more_body", False):
                    E2E_LATENCY.labels(clock.input).observe(now - clock.started)
            await send(message)

        await self.app(scope, receive, observed_send)


def has_content(body: bytes) -> bool:
    """Whether server-sent events carry something that a model said: text, reasoning or a tool call.

    The first chunk of a stream only names the role; it is no token.
    """
    for line in body.splitlines():
        if not line.startswith(b"data: {"):
            continue
        try:
            choices = json.loads(line[6:]).get("choices") or []
        except ValueError:
            continue
        for choice in choices:
            delta = choice.get("delta") or {}
            if any(delta.get(name) for name in ("content", "reasoning", "reasoning_content", "tool_calls")):
                return True
            if choice.get("finish_reason"):
                return True  # the model stopped at once: its first token was the end
    return False
