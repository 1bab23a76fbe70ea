from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY
from starlette.types import Message, Receive, Scope, Send

from cope_server.clocks import ClockMiddleware, clock_of, has_content
from cope_server.stages import STAGES, RequestClock

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
        (b'event: response.created\ndata: {"type":"response.created","response":{}}\n\n', False),
        (b'event: x\ndata: {"type":"response.content_part.added","part":{"text":""}}\n\n', False),
        (b'event: x\ndata: {"type":"response.output_text.delta","delta":"Left"}\n\n', True),
        (b'event: x\ndata: {"type":"response.output_text.delta","delta":""}\n\n', False),
        (b'event: x\ndata: {"type":"response.completed","response":{}}\n\n', True),
        (b": keep-alive\n\n", False),
    ],
)
def test_content_is_told_from_the_rest_of_a_stream(body: bytes, expected: bool) -> None:
    assert has_content(body) is expected


def count(metric: str, kind: str, cache: str = "none") -> float:
    return REGISTRY.get_sample_value(f"{metric}_count", {"input": kind, "cache": cache}) or 0.0


def total(metric: str, kind: str, cache: str = "none") -> float:
    return REGISTRY.get_sample_value(f"{metric}_sum", {"input": kind, "cache": cache}) or 0.0


def stages(suffix: str) -> dict[str, float]:
    return {
        stage: REGISTRY.get_sample_value(f"cope_stage_seconds_{suffix}", {"stage": stage}) or 0.0 for stage in STAGES
    }


def tokens() -> dict[str, float]:
    return {kind: REGISTRY.get_sample_value("cope_video_tokens_total", {"kind": kind}) or 0.0 for kind in "ip"} | {
        "text": REGISTRY.get_sample_value("cope_video_tokens_total", {"kind": "text"}) or 0.0
    }


TTFT, E2EL = "cope_time_to_first_token_seconds", "cope_e2e_latency_seconds"


def serve(
    chunks: list[bytes],
    *,
    status: int = 200,
    kind: str = "codec",
    path: str = "/v1/chat/completions",
    note: Callable[[RequestClock], None] = lambda clock: None,
) -> list[Message]:
    """One request through the middleware; the body takes 30 ms to arrive and each chunk 20 ms to make."""
    streaming = len(chunks) > 1

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        clock = clock_of(scope)
        if clock is not None:
            clock.input = kind
            clock.handed_over = time.perf_counter()
            note(clock)
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


def as_video(clock: RequestClock) -> None:
    clock.saw(
        [SimpleNamespace(plan=SimpleNamespace(mode="native"), started=0, fetch_s=0, extract_s=0, cached=True)],
        {"video"},
    )  # type: ignore[list-item]
    clock.account = {"i_tokens": 100, "p_tokens": 20}
    clock.prompt_tokens = 150


def test_stages_add_up_to_ttft_and_tokens_are_counted() -> None:
    before = stages("sum"), stages("count"), total(TTFT, "codec", "warm"), tokens()
    serve([ROLE, WORD, DONE], note=as_video)
    spent = {stage: seconds - before[0][stage] for stage, seconds in stages("sum").items()}
    assert sum(spent.values()) == pytest.approx(total(TTFT, "codec", "warm") - before[2], abs=1e-6)
    assert spent["receive"] >= 0.03 and spent["prefill"] >= 0.04
    counted = {stage: number - before[1][stage] for stage, number in stages("count").items()}
    assert counted == dict.fromkeys(STAGES, 1.0) | {"queue": 0.0}  # the engine told nothing
    assert {kind: number - before[3][kind] for kind, number in tokens().items()} == {"i": 100, "p": 20, "text": 30}


def test_requests_without_video_have_no_fetch_and_extract() -> None:
    before = stages("count")
    serve([ROLE, WORD, DONE], kind="text")
    counted = {stage: number - before[stage] for stage, number in stages("count").items()}
    assert counted == dict.fromkeys(STAGES, 1.0) | {"queue": 0.0, "fetch": 0.0, "extract": 0.0}


def test_an_answer_in_one_piece_has_stages_if_the_first_token_is_known() -> None:
    def known(clock: RequestClock) -> None:
        clock.first_output = clock.handed_over

    before = stages("count")["prefill"]
    serve([b"{}"])
    assert stages("count")["prefill"] == before
    serve([b"{}"], note=known)
    assert stages("count")["prefill"] == before + 1
