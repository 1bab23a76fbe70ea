from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import REGISTRY

from cope_codec.cache import PrimitivesCache
from cope_codec.executor import PoolStats
from cope_codec.flights import Flights
from cope_model.extraction import Extraction
from cope_server.codec_metrics import CodecMetrics, RefreshMiddleware


class Executor:
    """Says what it is told to say."""

    now = PoolStats(workers=2, busy=1, queued=3, oldest_s=0.5, restarts=4, outcomes={"ok": 10, "timeout": 1})

    def stats(self) -> PoolStats:
        return self.now


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"cope_codec_{name}", labels) or 0.0


@pytest.fixture
def metrics() -> CodecMetrics:
    store = PrimitivesCache(max_bytes=1000)
    store.nbytes, store.hits, store.misses = 600, 5, 6
    return CodecMetrics(Extraction(cast(Any, Executor()), Flights(store), 64))


COUNTERS = ("worker_restarts_total", "cache_hits_total", "cache_misses_total")


def test_values_are_those_of_the_moment(metrics: CodecMetrics, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [value(name) for name in COUNTERS]
    tasks = [value("tasks_total", outcome=outcome) for outcome in ("ok", "timeout")]
    metrics.refresh()
    metrics.refresh()
    names = ("workers", "busy_workers", "queue_depth", "queue_age_seconds", "cache_bytes", "cache_max_bytes")
    assert [value(name) for name in names] == [2, 1, 3, 0.5, 600, 1000]
    assert [value(name) - was for name, was in zip(COUNTERS, before, strict=True)] == [4, 5, 6]
    monkeypatch.setattr(Executor, "now", replace(Executor.now, queued=0, restarts=6, outcomes={"ok": 12}))
    metrics.refresh()
    assert value("queue_depth") == 0
    assert value("worker_restarts_total") - before[0] == 6
    now = [value("tasks_total", outcome=outcome) for outcome in ("ok", "timeout")]
    assert [a - b for a, b in zip(now, tasks, strict=True)] == [12, 1]


@pytest.mark.parametrize(("path", "expected"), [("/metrics", 3.0), ("/metrics/", 3.0), ("/health", 99.0)])
def test_they_are_refreshed_when_they_are_read(metrics: CodecMetrics, path: str, expected: float) -> None:
    from cope_server.codec_metrics import DEPTH

    seen = []

    async def app(*_: object) -> None:
        seen.append(value("queue_depth"))

    DEPTH.set(99)
    scope = {"type": "http", "path": path, "app": SimpleNamespace(state=SimpleNamespace(cope_codec_metrics=metrics))}
    asyncio.run(RefreshMiddleware(app)(scope, cast(Any, None), cast(Any, None)))
    assert seen == [expected]
