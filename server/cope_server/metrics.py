"""Prometheus metrics of the HTTP side; vLLM's own stay beside them."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

# From a cached clip on a GPU (10 ms) to a long cold video on a CPU (60 s).
_SECONDS = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60)
_LABELS = "input: text, image, codec or dense. cache: warm (no video had to be decoded), cold, or none (no video)."

TIME_TO_FIRST_TOKEN = Histogram(
    "cope_time_to_first_token_seconds",
    f"From the first byte of a streaming chat request to the first chunk with content. {_LABELS}",
    labelnames=("input", "cache"),
    buckets=_SECONDS,
)
E2E_LATENCY = Histogram(
    "cope_e2e_latency_seconds",
    f"From the first byte of a chat request to the last byte of a successful answer. {_LABELS}",
    labelnames=("input", "cache"),
    buckets=_SECONDS,
)
STAGE_SECONDS = Histogram(
    "cope_stage_seconds",
    "The time to the first token of chat requests, in stages that follow one another. "
    "stage: receive, fetch, extract, preprocess, queue or prefill; requests without video have no fetch and extract.",
    labelnames=("stage",),
    buckets=(0.001, 0.002, 0.005, *_SECONDS),
)
VIDEO_TOKENS = Counter(
    "cope_video_tokens",
    "Prompt tokens of answered chat requests with video. kind: i (keyframes), p (delta slots), text (all others).",
    labelnames=("kind",),
)
REJECTED = Counter(
    "cope_rejected",
    "Requests refused with one of the codes of docs/errors.md.",
    labelnames=("code",),
)
REQUESTS = Gauge("cope_requests", "POST requests that are being answered or wait.", multiprocess_mode="livesum")
VIDEO_REQUESTS = Gauge(
    "cope_video_requests", "Of these, and of prefetches, those with video.", multiprocess_mode="livesum"
)
WAITING_SECONDS = Gauge(
    "cope_waiting_video_seconds",
    "Length of the videos that wait for codec workers or are being decoded.",
    multiprocess_mode="livesum",
)
WAITING_PIXELS = Gauge(
    "cope_waiting_video_pixels",
    "What is to be decoded of them, in source pixels.",
    multiprocess_mode="livesum",
)
HELD_BYTES = Gauge("cope_held_bytes", "Request bodies and fetched videos.", multiprocess_mode="livesum")
