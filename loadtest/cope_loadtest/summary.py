"""What a point's requests amount to."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cope_loadtest.intervals import summarise
from cope_loadtest.outcomes import OK, OUTCOMES
from cope_loadtest.records import Record
from cope_loadtest.scenario import Point, Slo
from cope_loadtest.stages import summarise_stages

# name: what it measures; docs/loadtest.md explains them
METRICS = ("ttft_s", "ttft_sent_s", "ttft_body_s", "upload_s", "delay_s", "tpot_s", "itl_s", "e2el_s")
_ACCOUNT = ("seconds", "gops", "i_frames", "p_frames", "i_tokens", "p_tokens", "dense_tokens")


@dataclass(slots=True, eq=False)
class Measured:
    """A point and what was measured there.

    Attributes:
        point: the point.
        records: all of its requests, warm-up and ramp too.
        seconds: from the first measured request to the last answer, over all rounds.
        arrival_s, completion_s: from the first to the last due time, and from the first to the last answer.
        counters: by how much counters of the server grew after the warm-up, where it has `/metrics`.
        overhead: the client's own share (`selfcheck`), if it was measured.
    """

    point: Point
    records: list[Record] = field(default_factory=list)
    seconds: float = 0.0
    arrival_s: float = 0.0
    completion_s: float = 0.0
    counters: dict[str, float] = field(default_factory=dict)
    overhead: dict[str, Any] | None = None

    def add(self, records: Sequence[Record]) -> None:
        """Add the requests of a round."""
        self.records += records
        counted = [record for record in records if record.phase == "measured"]
        if counted:
            begin = min(record.scheduled for record in counted)
            self.seconds += max(record.last for record in counted if record.last is not None) - begin
        ends = [record.last for record in counted if record.ok and record.last is not None]
        if len(ends) > 1:
            due = [record.scheduled for record in counted]
            self.arrival_s += max(due) - min(due)
            self.completion_s += max(ends) - min(ends)

    @property
    def kept_up(self) -> float | None:
        """How fast answers came against how fast requests did: 1, or less where work piled up; None if unknown."""
        return self.arrival_s / self.completion_s if self.arrival_s and self.completion_s else None

    @property
    def counted(self) -> list[Record]:
        """Requests that are neither warm-up nor ramp."""
        return [record for record in self.records if record.phase == "measured"]


def meets(record: Record, slo: Slo) -> bool:
    """Whether an answer came whole and within every limit. One of a single token has no time per further token."""
    if not record.ok:
        return False
    for name, limit in slo.limits.items():
        value = getattr(record, name)
        if value is None and name == "tpot_s":
            continue
        if value is None or value > limit:
            return False
    return True


def summarise_point(measured: Measured, slo: Slo, expected: Sequence[str] = ()) -> dict[str, Any]:
    """The figures of a point.

    Args:
        measured: its requests.
        slo: limits of a good answer.
        expected: outcomes that are no failure in this scenario.

    Returns:
        `outcomes` counts every measured request once. `metrics` are over those that are `ok`. `failed` counts those
        whose outcome is neither `ok` nor expected, warm-up and ramp included: a server that died in the ramp has
        failed.
    """
    counted = measured.counted
    good = [record for record in counted if record.ok]
    outcomes = Counter(record.outcome for record in counted)
    seconds = max(measured.seconds, 1e-9)
    values = {
        name: [value for record in good if (value := getattr(record, name)) is not None]
        for name in METRICS
        if name != "itl_s"
    }
    values["itl_s"] = [gap for record in good for gap in record.itl_s]
    meeting = sum(meets(record, slo) for record in counted)
    share = meeting / len(counted) if counted else 0.0
    by_kind = {
        kind: {
            "n": len(ttfts),
            "ttft_s": summarise(ttfts),
        }
        for kind in measured.point.requests
        if (ttfts := [record.ttft_s for record in good if record.kind == kind and record.ttft_s is not None])
    }
    summary: dict[str, Any] = {
        "place": dict(measured.point.place),
        "label": measured.point.label,
        "requests": len(counted),
        "uncounted": len(measured.records) - len(counted),
        "outcomes": {name: outcomes[name] for name in OUTCOMES if outcomes[name]},
        "failed": sum(record.outcome != OK and record.outcome not in expected for record in measured.records),
        "seconds": round(measured.seconds, 3),
        "requests_per_s": round(len(good) / seconds, 4),
        "kept_up": None if measured.kept_up is None else round(measured.kept_up, 4),
        "output_tokens_per_s": round(sum(record.output_tokens or 0 for record in good) / seconds, 2),
        "metrics": {name: summarise(values[name]) for name in METRICS},
        "by_request": by_kind if len(by_kind) > 1 else {},
        "stages": summarise_stages(counted),
        "tokens": _tokens(good),
        "counters": measured.counters,
        "overhead": measured.overhead,
    }
    if slo.limits:
        summary["goodput"] = {
            "limits": slo.limits,
            "share": round(share, 4),
            "wanted": slo.share,
            "met": bool(counted) and share >= slo.share,
            "requests_per_s": round(meeting / seconds, 4),
        }
    return summary


def _tokens(records: Sequence[Record]) -> dict[str, Any] | None:
    """Medians of what prompts held, as the server counted; None if it did not."""
    prompts = [count for record in records if isinstance(count := record.usage.get("prompt_tokens"), int)]
    if not prompts:
        return None
    account: dict[str, Any] = {"prompt_tokens": statistics.median(prompts)}
    details = [details for record in records if isinstance(details := record.usage.get("prompt_tokens_details"), dict)]
    cached = [count for one in details if isinstance(count := one.get("cached_tokens"), int)]
    if cached:
        account["cached_tokens"] = statistics.median(cached)
    videos = [video for record in records if isinstance(video := record.usage.get("video"), dict)]
    for name in _ACCOUNT:
        told = [video[name] for video in videos if isinstance(video.get(name), int | float)]
        if told:
            account[name] = statistics.median(told)
    if "i_tokens" in account and "p_tokens" in account:
        account["text_tokens"] = account["prompt_tokens"] - account["i_tokens"] - account["p_tokens"]
    modes = Counter(str(video.get("mode")) for video in videos)
    if modes:
        account["modes"] = dict(modes)
    return account
