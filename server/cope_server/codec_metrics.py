"""The codec workers and their cache as Prometheus metrics, brought up to date when they are read."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge
from starlette.types import ASGIApp, Receive, Scope, Send

if TYPE_CHECKING:
    from cope_model.extraction import Extraction

_PATH = "/metrics"
_EVERY_S = 1.0

# Of several API-server processes, one answers for all: each writes its values to files, and sums are read from those.
WORKERS = Gauge("cope_codec_workers", "Codec worker processes that are warm.", multiprocess_mode="livesum")
BUSY = Gauge("cope_codec_busy_workers", "Codec workers at work.", multiprocess_mode="livesum")
DEPTH = Gauge("cope_codec_queue_depth", "Codec tasks that wait for a worker.", multiprocess_mode="livesum")
AGE = Gauge(
    "cope_codec_queue_age_seconds", "How long the first waiting codec task has waited.", multiprocess_mode="livemax"
)
RESTARTS = Counter("cope_codec_worker_restarts", "Codec workers started in place of one that was lost.")
TASKS = Counter(
    "cope_codec_tasks",
    "Codec tasks (opening a video, decoding a group of its GOPs) by outcome: ok, or the error's code.",
    labelnames=("outcome",),
)
HITS = Counter("cope_codec_cache_hits", "GOPs whose primitives were in the cache.")
MISSES = Counter("cope_codec_cache_misses", "GOPs whose primitives were not in the cache.")
BYTES = Gauge("cope_codec_cache_bytes", "Memory that the cached primitives hold.", multiprocess_mode="livesum")
MAX_BYTES = Gauge("cope_codec_cache_max_bytes", "Most memory that they may hold.", multiprocess_mode="livesum")


class CodecMetrics:
    """Copies what an executor and a cache count.

    A collector that looks at scrape time would be simpler, but vLLM's `/metrics` has none of them when there are
    several API-server processes.
    """

    def __init__(self, extraction: Extraction) -> None:
        self._executor, self._cache = extraction.executor, extraction.flights.store
        self._seen: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None

    def refresh(self) -> None:
        """Bring the metrics up to date."""
        stats = self._executor.stats()
        WORKERS.set(stats.workers)
        BUSY.set(stats.busy)
        DEPTH.set(stats.queued)
        AGE.set(stats.oldest_s)
        BYTES.set(self._cache.nbytes)
        MAX_BYTES.set(self._cache.max_bytes)
        self._raise(RESTARTS, "restarts", stats.restarts)
        self._raise(HITS, "hits", self._cache.hits)
        self._raise(MISSES, "misses", self._cache.misses)
        for outcome, count in stats.outcomes.items():
            self._raise(TASKS.labels(outcome), outcome, count)

    def _raise(self, counter: Counter, name: str, count: int) -> None:
        counter.inc(count - self._seen.get(name, 0))
        self._seen[name] = count

    def start(self) -> None:
        """Keep the values fresh that another API-server process reads, if there may be others."""
        self.refresh()
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            self._task = asyncio.create_task(self._keep_fresh())

    def stop(self) -> None:
        """The executor is about to be closed."""
        if self._task is not None:
            self._task.cancel()

    async def _keep_fresh(self) -> None:
        while True:
            await asyncio.sleep(_EVERY_S)
            self.refresh()


class RefreshMiddleware:
    """Refreshes the metrics of `app.state.cope_codec_metrics` when they are asked for."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] == "http" and scope["path"].rstrip("/").endswith(_PATH):
            metrics = getattr(scope["app"].state, "cope_codec_metrics", None)
            if metrics is not None:
                metrics.refresh()
        await self.app(scope, receive, send)
