"""Finds the load up to which a server keeps up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cope_loadtest.arrivals import Load
from cope_loadtest.scenario import Slo, Sweep


@dataclass(frozen=True, slots=True)
class Knee:
    """Where a sweep stopped to be sustained.

    Attributes:
        over: what was swept.
        sustained: the highest value that was kept up with; None if not even the lowest was.
        exceeded: the lowest value that was not; None if all were kept up with.
        reason: why not.
    """

    over: str
    sustained: float | None
    exceeded: float | None
    reason: str | None

    def to_json(self) -> dict[str, Any]:
        """As a table."""
        return {"over": self.over, "sustained": self.sustained, "exceeded": self.exceeded, "reason": self.reason}


async def search(
    sweep: Sweep, measure: Callable[[float], Awaitable[dict[str, Any]]], why_not: Callable[..., str | None]
) -> Knee:
    """Try the values in order, stop at the first that is not sustained, and halve the gap before it.

    Args:
        sweep: the values.
        measure: runs one value and gives its summary.
        why_not: why a summary is not sustained, or None; called with the summary and that of the lowest value.
    """
    first: dict[str, Any] | None = None
    good: float | None = None
    bad: float | None = None
    reason: str | None = None

    async def sustained(value: float) -> bool:
        nonlocal first, reason
        summary = await measure(value)
        why = why_not(summary, first or summary)
        first = first or summary
        reason = why or reason
        return why is None

    for value in sweep.values:
        if not await sustained(value):
            bad = value
            break
        good = value
    for _ in range(sweep.knee_steps if good is not None and bad is not None else 0):
        assert good is not None and bad is not None
        middle = (good + bad) / 2
        if sweep.over == "concurrency":
            middle = float(round(middle))
        if middle in (good, bad):
            break
        if await sustained(middle):
            good = middle
        else:
            bad = middle
    return Knee(sweep.over, good, bad, reason)


def why_not_sustained(
    summary: Mapping[str, Any], first: Mapping[str, Any], sweep: Sweep, load: Load, slo: Slo
) -> str | None:
    """Why a point's load was too much, or None.

    Args:
        summary: of the point.
        first: of the lowest load.
        sweep: its factors.
        load: of the point; its arrival process counts.
        slo: if it has limits they decide, else TTFT against that of the lowest load.
    """
    lost = summary["requests"] - summary["outcomes"].get("ok", 0)
    if not summary["requests"]:
        return "no request was measured"
    if lost > (1 - slo.share) * summary["requests"]:
        return f"{lost} of {summary['requests']} requests were not answered"
    kept_up = summary["kept_up"]
    if load.arrival != "closed" and kept_up is not None and kept_up < sweep.min_throughput:
        return f"answers came {kept_up:.2f} times as fast as requests"
    goodput = summary.get("goodput")
    if goodput is not None:
        return None if goodput["met"] else f"{goodput['share']:.0%} of requests within the SLO, wanted {slo.share:.0%}"
    ttft, lowest = summary["metrics"]["ttft_s"], first["metrics"]["ttft_s"]
    if ttft is None or lowest is None:
        return "no first token came"
    if ttft["p95"]["value"] > sweep.knee_factor * lowest["p95"]["value"]:
        return f"p95 of TTFT {ttft['p95']['value']:.3g} s, {lowest['p95']['value']:.3g} s at the lowest load"
    return None
