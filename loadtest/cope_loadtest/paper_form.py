"""The paper's latency table: what codec input cuts off the times of dense frames, on the same server and clips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cope_loadtest.intervals import Estimate, estimate, resampled
from cope_loadtest.scenario import Point
from cope_loadtest.summary import Measured


def codec_vs_dense(points: Sequence[Measured]) -> list[dict[str, Any]]:
    """Each codec point beside the dense point of its cell.

    Args:
        points: those with one kind of request; a cell without a dense one is passed over.

    Returns:
        For each codec point: keyframes_per_gop, concurrency (None in open loops), cache, the rest of its `place`,
            ttft_s and
        e2el_s (medians from the scheduled time), dense_ttft_s and dense_e2el_s, ttft_cut and e2el_cut (0.86 where 86%
        of the time is saved), and of each of the six `..._interval`: [low, high] at 95%. n and dense_n count the
        requests.
    """
    dense = {measured.point.cell: measured for measured in points if _is(measured.point, dense=True)}
    return [
        row
        for measured in points
        if _is(measured.point, dense=False)
        and (other := dense.get(measured.point.cell)) is not None
        and (row := _row(measured, other)) is not None
    ]


def _is(point: Point, *, dense: bool) -> bool:
    if len(point.requests) != 1:
        return False
    (request,) = point.requests.values()
    return request.kind == "video" and request.dense == dense


def _row(codec: Measured, dense: Measured) -> dict[str, Any] | None:
    point = codec.point
    (request,) = point.requests.values()
    row: dict[str, Any] = {
        "keyframes_per_gop": int(request.options.get("keyframes_per_gop", 1)),
        "concurrency": point.load.concurrency if point.load.arrival == "closed" else None,
        "cache": point.cache,
        "place": dict(point.place),
        "dense_frames": next(iter(dense.point.requests.values())).options["frames"],
    }
    for name in ("ttft", "e2el"):
        ours, theirs = _times(codec, name), _times(dense, name)
        if not ours or not theirs:
            return None
        row |= {"n": len(ours), "dense_n": len(theirs)}
        drawn, drawn_dense = resampled(ours, [0.5], seed=1)[:, 0], resampled(theirs, [0.5], seed=2)[:, 0]
        median, dense_median = float(np.median(ours)), float(np.median(theirs))
        for key, found in (
            (f"{name}_s", estimate(median, drawn)),
            (f"dense_{name}_s", estimate(dense_median, drawn_dense)),
            (f"{name}_cut", estimate(1 - median / dense_median, 1 - drawn / drawn_dense)),
        ):
            row |= _with_interval(key, found)
    return row


def _times(measured: Measured, name: str) -> list[float]:
    values = [getattr(record, f"{name}_s") for record in measured.counted if record.ok]
    return [value for value in values if value is not None]


def _with_interval(key: str, found: Estimate) -> dict[str, Any]:
    return {key: round(found.value, 6), f"{key}_interval": [round(found.low, 6), round(found.high, 6)]}
