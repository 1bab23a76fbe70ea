"""The clock of a request: starts at its first byte, notes the first token and the end."""

from __future__ import annotations

import json
import time
from contextvars import ContextVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cope_server import metrics, request_log, tracing
from cope_server.stages import RequestClock, stage_times

PATHS = ("/v1/chat/completions", "/v1/responses")
_CLOCK = "cope_clock"

# The clock of the request that is being answered: the engine has no other way to it.
current: ContextVar[RequestClock | None] = ContextVar("cope_clock", default=None)


def clock_of(scope: Scope) -> RequestClock | None:
    """The clock that `ClockMiddleware` started for this request."""
    found = scope.get("state", {}).get(_CLOCK)
    return found if isinstance(found, RequestClock) else None


class ClockMiddleware:
    """Observes the times of chat requests where the bytes leave the server; logs and traces them if asked to.

    A pure ASGI middleware: it is called when the request's headers have arrived, before its body (a video in a data
    URI takes a while) is read or parsed.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the request with a clock."""
        if scope["type"] != "http" or not scope["path"].endswith(PATHS) or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        clock = RequestClock(time.perf_counter())
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), None)
        clock.request_id = None if given is None else given.decode("latin-1")
        scope.setdefault("state", {})[_CLOCK] = clock
        trace = tracing.begin(scope)
        ok = streaming = False

        async def observed_receive() -> Message:
            message = await receive()
            if clock.received is None and message["type"] == "http.request" and not message.get("more_body", False):
                clock.received = time.perf_counter()
            return message

        async def observed_send(message: Message) -> None:
            nonlocal ok, streaming
            if message["type"] == "http.response.start":
                clock.status = message["status"]
                ok = clock.status == 200
                streaming = any(
                    name.lower() == b"content-type" and value.startswith(b"text/event-stream")
                    for name, value in message["headers"]
                )
            elif message["type"] == "http.response.body" and ok:
                now = time.perf_counter()
                if streaming and clock.first_token is None and has_content(message.get("body", b"")):
                    clock.first_token = now
                    _observe_first_token(clock)
                if not message.get("more_body", False):
                    clock.ended = now
                    _observe_end(clock)
            await send(message)

        try:
            await self.app(scope, observed_receive, observed_send)
        finally:
            request_log.write(clock)
            if trace is not None:
                tracing.end(trace, clock)


def _observe_first_token(clock: RequestClock) -> None:
    ttft = clock.ttft_s
    assert ttft is not None
    metrics.TIME_TO_FIRST_TOKEN.labels(clock.input or "text", clock.cache).observe(ttft)
    _observe_stages(clock)


def _observe_end(clock: RequestClock) -> None:
    assert clock.ended is not None
    metrics.E2E_LATENCY.labels(clock.input or "text", clock.cache).observe(clock.ended - clock.started)
    if clock.first_token is None and clock.first is not None:
        _observe_stages(clock)
    if clock.account:
        video = {"i": clock.account["i_tokens"], "p": clock.account["p_tokens"]}
        for kind, count in video.items():
            metrics.VIDEO_TOKENS.labels(kind).inc(count)
        if clock.prompt_tokens is not None:
            metrics.VIDEO_TOKENS.labels("text").inc(max(clock.prompt_tokens - sum(video.values()), 0))


def _observe_stages(clock: RequestClock) -> None:
    for stage, seconds in stage_times(clock).items():
        if seconds is not None and (clock.videos or stage not in ("fetch", "extract")):
            metrics.STAGE_SECONDS.labels(stage).observe(max(seconds, 0.0))


def has_content(body: bytes) -> bool:
    """Whether server-sent events carry something that a model said: text, reasoning or a tool call.

    The first chunk of a stream only names the role; it is no token. Events of the Responses API have a type.
    """
    for line in body.splitlines():
        if not line.startswith(b"data: {"):
            continue
        try:
            event = json.loads(line[6:])
        except ValueError:
            continue
        kind = event.get("type")
        if isinstance(kind, str) and ((kind.endswith(".delta") and event.get("delta")) or kind == "response.completed"):
            return True
        for choice in event.get("choices") or []:
            delta = choice.get("delta") or {}
            if any(delta.get(name) for name in ("content", "reasoning", "reasoning_content", "tool_calls")):
                return True
            if choice.get("finish_reason"):
                return True  # the model stopped at once: its first token was the end
    return False
