"""Measures the client itself: the same requests against a server that answers at once."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass, replace
from typing import Any

from cope_loadtest.arrivals import Load
from cope_loadtest.client import Body, Patience, make_client, send
from cope_loadtest.helpers import helper
from cope_loadtest.records import Record
from cope_loadtest.runner import LoadRun, Prepared

ENOUGH_CHUNKS_PER_S = 2000.0
MOST_SHARE = 0.05  # of the median of what is measured
_REQUESTS = 40
_SECONDS = 3.0
_SLOWEST_PER_S = 8.0
_CHUNKS = 5000


@dataclass(frozen=True, slots=True)
class Overhead:
    """What the client takes for itself with a load; the null server's own time is in it, so it is an upper bound.

    Attributes:
        requests: that were measured.
        ttft_s, ttft_p95_s: from scheduled to the first token, seconds.
        delay_s: of it from scheduled to sent, median.
    """

    requests: int
    ttft_s: float
    ttft_p95_s: float
    delay_s: float

    def beside(self, ttft_s: float | None) -> dict[str, Any]:
        """As a table, with its share of a measured median, and whether that is too much."""
        share = None if not ttft_s else self.ttft_s / ttft_s
        return {
            "requests": self.requests,
            "ttft_s": round(self.ttft_s, 6),
            "ttft_p95_s": round(self.ttft_p95_s, 6),
            "delay_s": round(self.delay_s, 6),
            "share": None if share is None else round(share, 4),
            "too_much": share is not None and share > MOST_SHARE,
        }


class SelfCheck:
    """Asks a null server at a base address; loads that are alike are measured once."""

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url
        self._known: dict[Any, Overhead] = {}

    async def overhead(self, load: Load, body: Body, requests_per_s: float) -> Overhead:
        """What the client takes for itself with this load and a body of this size.

        Args:
            load: an open loop is repeated as it is. Users of a closed loop would ask a null server far more often than
                a real one, so in their place requests come at random, as fast as they did at the real one.
            body: what to send.
            requests_per_s: how fast that was.

        Raises:
            RuntimeError: the null server did not answer.
        """
        short = replace(load, requests=_REQUESTS, duration_s=_SECONDS, ramp_s=0.0, warmup=2)
        if load.arrival == "closed":
            short = replace(short, arrival="poisson", rate=max(requests_per_s, _SLOWEST_PER_S))
        key = (short.arrival, round(math.log2(short.rate)), short.burst, round(math.log2(body.size)))
        if key not in self._known:
            self._known[key] = await self._measure(short, body)
        return self._known[key]

    async def _measure(self, short: Load, body: Body) -> Overhead:
        async with make_client(self._base_url) as client:
            records = await LoadRun(client, short, lambda *_: Prepared("null", None, body), Patience()).run()
        counted = [record for record in records if record.ok and record.phase == "measured"]
        ttfts = sorted(record.ttft_s for record in counted if record.ttft_s is not None)
        if not ttfts:
            raise RuntimeError(f"the null server did not answer: {records[0].outcome} {records[0].detail}")
        delays = [record.delay_s for record in counted if record.delay_s is not None]
        p95 = ttfts[min(len(ttfts) - 1, int(0.95 * len(ttfts)))]
        return Overhead(len(ttfts), statistics.median(ttfts), p95, statistics.median(delays))


async def chunks_per_s() -> float:
    """Streamed chunks that this client reads per second of its own processor time.

    Raises:
        RuntimeError: the null server did not answer.
    """
    with helper("null_server", str(_CHUNKS)) as url:
        async with make_client(url) as client:
            record = Record(0, 0, "measured", "null", None, time.perf_counter())
            started = time.process_time()
            await send(client, Body([b"{}"]), record, Patience())
            used = time.process_time() - started
    if not record.ok:
        raise RuntimeError(f"the null server did not answer: {record.outcome} {record.detail}")
    return len(record.tokens) / max(used, 1e-6)
