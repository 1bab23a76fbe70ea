from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from prometheus_client import REGISTRY
from starlette.types import Message, Receive, Scope, Send

from cope_server.clocks import ClockMiddleware, clock_of, has_content

ROLE = b'data: {"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
WORD = b'data: {"choices":[{"delta":{"content":"Left"},"finish_reason":null}]}\n\n'
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (ROLE, False),
        (WORD, True),
        (ROLE + WORD, True),
        (DONE, False),
        (b'data: {"choices":[{"delta":{"reasoning":"hm"}}]}\n\n', True),
        (b'data: {"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}\n\n', True),
        (b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n', True),
        (b'data: {"choices":[],"usage":{"prompt_tokens":3}}\n\n', False),
        (b"data: {broken\n\n", False),
        (b": keep-alive\n\n", False),
    ],
)
def test_content_is_told_from_the_rest_of_a_stream(body: bytes, expected: bool) -> None:
    assert has_content(body) is expected


def count(metric: str, kind: str) -> float:
    return REGISTRY.get_sample_value(f"{metric}_count", {"input": kind}) or 0.0


def total(metric: str, kind: str) -> float:
    return REGISTRY.get_sample_value(f"{metric}_sum", {"input": kind}) or 0.0


TTFT, E2EL = "cope_time_to_first_token_seconds", "cope_e2e_latency_seconds"


def serve(
    chunks: list[bytes], *, status: int = 200, kind: str = "codec", path: str = "/v1/chat/completions"
) -> list[Message]:
    """One request through the middleware; the body takes 30 ms to arrive and each chunk 20 ms to make."""
    streaming = len(chunks) > 1

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        clock = clock_of(scope)
        if clock is not None:
            clock.input = kind
        content_type = b"text/event-stream; charset=utf-8" if streaming else b"application/json"
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", content_type)]})
        for number, chunk in enumerate(chunks):
            await asyncio.sleep(0.02)
            await send({"type": "http.response.body", "body": chunk, "more_body": number + 1 < len(chunks)})

    async def receive() -> Message:
        await asyncio.sleep(0.03)
        return {"type": "http.request", "body": b"{}", "more_body": False}

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": path, "headers": []}
    asyncio.run(ClockMiddleware(app)(scope, receive, send))
    return sent


def test_ttft_is_the_first_content_and_counts_the_bodys_way() -> None:
    before = count(TTFT, "codec"), total(TTFT, "codec"), total(E2EL, "codec"), count(E2EL, "codec")
    sent = serve([ROLE, WORD, WORD, DONE])
    assert [message.get("body") for message in sent[1:]] == [ROLE, WORD, WORD, DONE]
    assert count(TTFT, "codec") == before[0] + 1
    assert count(E2EL, "codec") == before[3] + 1
    ttft, e2el = total(TTFT, "codec") - before[1], total(E2EL, "codec") - before[2]
    assert 0.07 <= ttft < e2el - 0.035  # 30 ms of body, 40 ms to the second chunk; two more chunks to the end


def test_an_answer_in_one_piece_has_no_first_token() -> None:
    before = count(TTFT, "text"), count(E2EL, "text")
    serve([json.dumps({"choices": []}).encode()], kind="text")
    assert (count(TTFT, "text"), count(E2EL, "text")) == (before[0], before[1] + 1)


def test_errors_and_other_routes_are_not_observed() -> None:
    before = count(TTFT, "dense"), count(E2EL, "dense")
    serve([b"{}"], status=400, kind="dense")
    serve([ROLE, WORD], kind="dense", path="/v1/models")
    assert (count(TTFT, "dense"), count(E2EL, "dense")) == before
