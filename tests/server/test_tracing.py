from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
from requirements import require

from cope_server import tracing
from cope_server.stages import RequestClock

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.fixture
def exporter() -> Iterator[Any]:
    require("ENGINE", find_spec("opentelemetry") is not None, "OpenTelemetry, which vLLM brings, is not installed")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.switch_on(provider)
    yield exporter
    tracing.switch_off()
    provider.shutdown()


def scope(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"path": "/v1/chat/completions", "headers": [(b"host", b"here"), *headers]}


def clock(*videos: tuple[float, float, float], **more: Any) -> RequestClock:
    loaded: Any = [SimpleNamespace(started=start, fetch_s=fetch, extract_s=extract) for start, fetch, extract in videos]
    times: dict[str, Any] = {"received": 1.0, "handed_over": 10.0, "first_output": 14.0, "prefill_s": 3.0, **more}
    return RequestClock(started=0.0, videos=loaded, first_token=15.0, **times)


def test_nothing_happens_where_nobody_traces() -> None:
    assert tracing.begin(scope()) is None


def test_stages_are_spans_below_the_requests_which_is_below_the_clients(exporter: Any) -> None:
    request = scope((b"traceparent", PARENT.encode()))
    trace = tracing.begin(request)
    assert trace is not None
    handed_on = dict(request["headers"])
    done = clock((2.0, 1.0, 3.0))
    done.status, done.input, done.cache, done.request_id = 200, "codec", "cold", "chatcmpl-7"
    tracing.end(trace, done)
    *stages, whole = exporter.get_finished_spans()
    assert format(whole.context.trace_id, "032x") == TRACE
    assert format(whole.parent.span_id, "016x") == PARENT.split("-")[2]
    assert {format(span.parent.span_id, "016x") for span in stages} == {format(whole.context.span_id, "016x")}
    assert handed_on[b"traceparent"].decode().split("-")[1:3] == [TRACE, format(whole.context.span_id, "016x")]
    assert handed_on[b"host"] == b"here"
    assert whole.attributes["cope.input"] == "codec" and whole.attributes["http.response.status_code"] == 200
    took = [(span.name, pytest.approx((span.end_time - span.start_time) / 1e9, abs=1e-3)) for span in stages]
    names = ("receive", "fetch", "extract", "preprocess", "preprocess", "queue", "prefill")
    assert took == [(f"cope.{name}", seconds) for name, seconds in zip(names, (1, 1, 3, 1, 4, 1, 4), strict=True)]


def test_a_client_without_a_trace_begins_one(exporter: Any) -> None:
    request = scope()
    trace = tracing.begin(request)
    assert trace is not None
    tracing.end(trace, RequestClock(started=0.0))
    (whole,) = exporter.get_finished_spans()
    assert whole.parent is None
    assert format(whole.context.trace_id, "032x") in dict(request["headers"])[b"traceparent"].decode()


def test_parallel_videos_have_a_span_each() -> None:
    found = tracing.spans(clock((2.0, 1.0, 3.0), (2.0, 2.0, 3.0)))
    assert [interval for stage, interval in found if stage == "extract"] == [(3.0, 6.0), (4.0, 7.0)]
    assert [interval for stage, interval in found if stage == "preprocess"] == [(1.0, 2.0), (7.0, 10.0)]


def test_a_refused_request_ends_where_it_was() -> None:
    refused = RequestClock(started=0.0, received=1.0)
    assert tracing.spans(refused) == [("receive", (0.0, 1.0))]
