"""What the server says of its own time (`usage.timings`), laid beside the client's clock."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from cope_loadtest.records import Record

# Stages that follow one another and add up to the server's time to the first token (docs/metrics.md of the server).
STAGES = ("receive", "fetch", "extract", "preprocess", "queue", "prefill")
_SHARE, _FLOOR_S = 0.05, 0.003  # what may be left unexplained: the network, and the client's own reading


def stages_of(record: Record) -> dict[str, float] | None:
    """Seconds of each stage; None if the server did not say."""
    timings = record.usage.get("timings")
    if not isinstance(timings, dict):
        return None
    told = {name: float(timings[name]) for name in STAGES if isinstance(timings.get(name), int | float)}
    return told or None


def summarise_stages(records: Sequence[Record]) -> dict[str, Any] | None:
    """Median of each stage, and whether they explain the time to the first token.

    Compared is the client's time from the request's first byte, for there the server's clock starts, too.

    Args:
        records: of a point; those that are not `ok` are passed over.

    Returns:
        None where the server sends no stage times. Else `median_s` by stage, `n`, and `check`: `ttft_sent_s` (the
        client's median), `sum_s` (median of the sums), `unexplained_s` (median of the differences), `share` of it, and
        `explained`: it is at most 5% of the client's median, or 3 ms.
    """
    told = [
        (stages, record.ttft_sent_s)
        for record in records
        if record.ok and record.ttft_sent_s is not None and (stages := stages_of(record)) is not None
    ]
    if not told:
        return None
    medians = {
        name: round(statistics.median(values), 6)
        for name in STAGES
        if (values := [stages[name] for stages, _ in told if name in stages])
    }
    sums = [sum(stages.values()) for stages, _ in told]
    left = statistics.median(ttft - total for (_, ttft), total in zip(told, sums, strict=True))
    ttft = statistics.median(ttft for _, ttft in told)
    return {
        "n": len(told),
        "median_s": medians,
        "check": {
            "ttft_sent_s": round(ttft, 6),
            "sum_s": round(statistics.median(sums), 6),
            "unexplained_s": round(left, 6),
            "share": round(left / ttft, 4) if ttft else 0.0,
            "explained": abs(left) <= max(_SHARE * ttft, _FLOOR_S),
        },
    }
