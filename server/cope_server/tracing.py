"""OpenTelemetry spans of a chat request's stages, where vLLM exports its own (`--otlp-traces-endpoint`)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cope_server.stages import Interval, RequestClock, media_intervals, stage_times, union

if TYPE_CHECKING:
    from starlette.types import Scope

_NAME = "cope_server"
_PARENT = (b"traceparent", b"tracestate")
_tracer: Any = None


@dataclass(frozen=True, slots=True)
class Trace:
    """The span of a request that is being answered.

    Attributes:
        span: OpenTelemetry's.
        wall: what to add to times of `time.perf_counter` to have seconds since the epoch.
    """

    span: Any
    wall: float


def switch_on(provider: Any = None) -> None:
    """Trace from here on.

    Args:
        provider: OpenTelemetry's tracer provider; None is the process's, which vLLM's engine client sets up.
    """
    from opentelemetry import trace

    global _tracer
    _tracer = trace.get_tracer(_NAME, tracer_provider=provider)


def switch_off() -> None:
    """Trace no more."""
    global _tracer
    _tracer = None


def begin(scope: Scope) -> Trace | None:
    """Start a request's span below the client's, and name it to vLLM, whose span then comes below ours.

    Args:
        scope: the request's; its trace headers are replaced.
    """
    if _tracer is None:
        return None
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    propagator = TraceContextTextMapPropagator()
    given = {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in _PARENT}
    span = _tracer.start_span(
        "cope.chat",
        context=propagator.extract(given),
        kind=trace.SpanKind.SERVER,
        attributes={"url.path": scope["path"]},
    )
    named: dict[str, str] = {}
    propagator.inject(named, context=trace.set_span_in_context(span))
    others = [(name, value) for name, value in scope["headers"] if name not in _PARENT]
    scope["headers"] = [*others, *((name.encode(), value.encode()) for name, value in named.items())]
    return Trace(span, time.time() - time.perf_counter())


def end(trace: Trace, clock: RequestClock) -> None:
    """End the request's span, with one below it for every stage that was reached; parallel videos have one each."""
    from opentelemetry.trace import set_span_in_context

    below = set_span_in_context(trace.span)
    for stage, (begun, ended) in spans(clock):
        stage_span = _tracer.start_span(f"cope.{stage}", context=below, start_time=_ns(begun + trace.wall))
        stage_span.end(end_time=_ns(ended + trace.wall))
    found = {
        "http.response.status_code": clock.status,
        "gen_ai.request.id": clock.request_id,
        "gen_ai.usage.prompt_tokens": clock.prompt_tokens,
        "cope.input": clock.input,
        "cope.cache": clock.cache,
    }
    trace.span.set_attributes({name: value for name, value in found.items() if value is not None})
    trace.span.end()


def spans(clock: RequestClock) -> list[tuple[str, Interval]]:
    """When each stage ran, by `time.perf_counter`; a stage may have several spans."""
    found: list[tuple[str, Interval]] = []
    if clock.received is None:
        return found
    found.append(("receive", (clock.started, clock.received)))
    if clock.handed_over is None:
        return found
    fetching, extracting = media_intervals(clock)
    found += [("fetch", interval) for interval in fetching] + [("extract", interval) for interval in extracting]
    since = clock.received
    for begin, end in union([*fetching, *extracting, (clock.handed_over, clock.handed_over)]):
        if begin > since:
            found.append(("preprocess", (since, begin)))
        since = end
    times = stage_times(clock)
    if clock.first is not None:
        scheduled = clock.handed_over + (times["queue"] or 0.0)
        if times["queue"] is not None:
            found.append(("queue", (clock.handed_over, scheduled)))
        found.append(("prefill", (scheduled, clock.first)))
    return found


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
