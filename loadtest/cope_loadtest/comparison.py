"""What changed from one report to another, with intervals, and whether that is a regression."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from cope_loadtest.intervals import QUANTILES, change
from cope_loadtest.records import Record
from cope_loadtest.report import EXIT_OK, EXIT_SLO, ReportError

# What is compared: metric and quantile; more is worse.
COMPARED = (("ttft_s", "p50"), ("ttft_s", "p95"), ("tpot_s", "p50"), ("e2el_s", "p50"), ("e2el_s", "p95"))
_FEWEST = 5  # requests on either side
_LOST_SHARE = 0.01


def compare(before: dict[str, Any], after: dict[str, Any], threshold: float) -> dict[str, Any]:
    """Lay two reports side by side.

    Args:
        before, after: reports of one scenario; points are matched by their places.
        threshold: a regression is a change whose whole interval lies above this; 0.05 is 5% more.

    Returns:
        `changes`: point, metric, quantile, before, after, change, change_interval, verdict (`worse`, `better`, `same`,
            or
        `unknown` where there are fewer than five requests). `lost`: points that answer a smaller share of requests by
        more than a hundredth. `slo_missed`: of the second report. `only_before`, `only_after`: points without a
        partner. `exit_code`: 1 for a regression or a missed SLO, else 0.

    Raises:
        ReportError: they have no point in common, or their requests cannot be read.
    """
    ours, theirs = _by_place(before), _by_place(after)
    common = [place for place in ours if place in theirs]
    if not common:
        raise ReportError("the reports have no point in common: are they of one scenario?")
    changes, lost = [], []
    for place in common:
        old, new = ours[place], theirs[place]
        label = new["point"]["label"]
        changes += [
            _change(label, metric, quantile, old["values"][metric], new["values"][metric], threshold)
            for metric, quantile in COMPARED
            if old["values"][metric] and new["values"][metric]
        ]
        shares = [side["ok"] / side["n"] if side["n"] else 0.0 for side in (old, new)]
        if shares[1] < shares[0] - _LOST_SHARE:
            lost.append({"point": label, "before": round(shares[0], 4), "after": round(shares[1], 4)})
    missed = after["verdict"]["slo_missed"]
    worse = any(row["verdict"] == "worse" for row in changes)
    return {
        "threshold": threshold,
        "changes": changes,
        "lost": lost,
        "slo_missed": missed,
        "only_before": [ours[place]["point"]["label"] for place in ours if place not in theirs],
        "only_after": [theirs[place]["point"]["label"] for place in theirs if place not in ours],
        "exit_code": EXIT_SLO if worse or lost or missed else EXIT_OK,
    }


def comparison_tables(found: dict[str, Any]) -> list[RenderableType]:
    """A comparison for the terminal."""
    table = Table(
        box=SIMPLE_HEAD,
        caption=f"change with its 95% interval; worse: all of it above {found['threshold']:+.0%}",
    )
    for heading in ("point", "metric", "before ms", "after ms", "change", ""):
        table.add_column(heading, justify="left" if heading in ("point", "metric", "") else "right", overflow="fold")
    colours = {"worse": "red", "better": "green", "unknown": "dim"}
    for row in found["changes"]:
        low, high = row["change_interval"]
        table.add_row(
            escape(row["point"]),
            f"{row['metric'].removesuffix('_s').upper()} {row['quantile']}",
            f"{row['before'] * 1e3:,.1f}",
            f"{row['after'] * 1e3:,.1f}",
            f"{row['change']:+.1%} ({low:+.1%} to {high:+.1%})",
            row["verdict"],
            style=colours.get(row["verdict"], ""),
        )
    parts: list[RenderableType] = [table]
    parts += [
        f"[red]fewer answers[/] {escape(row['point'])}: {row['before']:.1%} of requests, then {row['after']:.1%}"
        for row in found["lost"]
    ]
    parts += [f"[red]SLO missed[/] {escape(label)}" for label in found["slo_missed"]]
    parts += [f"[yellow]only in the first[/] {escape(label)}" for label in found["only_before"]]
    parts += [f"[yellow]only in the second[/] {escape(label)}" for label in found["only_after"]]
    return parts


def _by_place(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    try:
        records = [Record.from_json(row) for row in report["requests"]]
        found = {}
        for index, point in enumerate(report["points"]):
            counted = [record for record in records if record.point == index and record.phase == "measured"]
            good = [record for record in counted if record.ok]
            found[json.dumps(point["place"], sort_keys=True)] = {
                "point": point,
                "n": len(counted),
                "ok": len(good),
                "values": {
                    metric: [value for record in good if (value := getattr(record, metric)) is not None]
                    for metric, _ in COMPARED
                },
            }
        return found
    except (KeyError, TypeError, ValueError) as error:
        raise ReportError(f"the report is damaged: {type(error).__name__}: {error}") from None


def _change(
    label: str, metric: str, quantile: str, old: list[float], new: list[float], threshold: float
) -> dict[str, Any]:
    found = change(old, new, QUANTILES[quantile])
    verdict = "same"
    if min(len(old), len(new)) < _FEWEST:
        verdict = "unknown"
    elif found.low > threshold:
        verdict = "worse"
    elif found.high < -threshold:
        verdict = "better"
    return {
        "point": label,
        "metric": metric,
        "quantile": quantile,
        "before": round(float(np.quantile(old, QUANTILES[quantile])), 6),
        "after": round(float(np.quantile(new, QUANTILES[quantile])), 6),
        "change": round(found.value, 4),
        "change_interval": [round(found.low, 4), round(found.high, 4)],
        "verdict": verdict,
    }
