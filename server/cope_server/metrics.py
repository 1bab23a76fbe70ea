"""Prometheus metrics of the HTTP side; vLLM's own stay beside them."""

from __future__ import annotations

from prometheus_client import Histogram

# From a cached clip on a GPU (10 ms) to a long cold video on a CPU (60 s).
_SECONDS = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60)

TIME_TO_FIRST_TOKEN = Histogram(
    "cope_time_to_first_token_seconds",
    "From the first byte of a streaming chat request to the first chunk with content. "
    "input: text, image, codec or dense.",
    labelnames=("input",),
    buckets=_SECONDS,
)
E2E_LATENCY = Histogram(
    "cope_e2e_latency_seconds",
    "From the first byte of a chat request to the last byte of a successful answer. "
    "input: text, image, codec or dense.",
    labelnames=("input",),
    buckets=_SECONDS,
)
