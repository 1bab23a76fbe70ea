"""Which plots a report has: each that its points can fill."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cope_loadtest.scenario import describe
from cope_loadtest.stages import STAGES
from cope_loadtest.svg import Bar, Dot, Series, bar_chart, line_chart

Point = dict[str, Any]
_MOST_LINES = 4  # of two quantiles each; more would hide each other


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot with its words.

    Attributes:
        name: of its file.
        title: what it shows.
        note: how to read it.
        svg: the picture.
    """

    name: str
    title: str
    note: str
    svg: str


def plots(report: dict[str, Any]) -> list[Plot]:
    """All plots that a report can fill, the most telling first."""
    points = [point for point in report["points"] if point["metrics"]["ttft_s"] is not None]
    made = (
        # Cold and warm differ by orders of magnitude: an axis for each.
        *(
            keyframes_plot(report, [point for point in points if point["cache"] == cache], cache)
            for cache in ("cold", "warm")
        ),
        length_plot(points),
        load_plot(report, points, "rate"),
        load_plot(report, points, "concurrency"),
        quantiles_plot(points),
        stages_plot(points),
        tokens_plot(points),
    )
    return [plot for plot in made if plot is not None]


def keyframes_plot(report: dict[str, Any], points: Sequence[Point], cache: str) -> Plot | None:
    """TTFT over keyframes per GOP, dense frames beside them, of the points of one cache."""
    specs = report["scenario"]["requests"]
    videos = [point for point in points if len(point["request"]) == 1 and specs[point["request"][0]]["kind"] == "video"]

    def column(point: Point) -> str:
        options = specs[point["request"][0]]["options"]
        return f"{options['frames']} RGB frames" if "frames" in options else str(options.get("keyframes_per_gop", 1))

    codec = sorted({name for point in videos if (name := column(point)).isdigit()}, key=int)
    dense = sorted({name for point in videos if not (name := column(point)).isdigit()})
    if not codec or len(codec) + len(dense) < 2 or _varied(videos, "clip") > 1:
        return None
    categories = [*codec, *dense]
    series = []
    for name, group in _groups(videos, without=("cache",)):
        dots = [_dot(float(categories.index(column(point))), point) for point in group]
        dots.sort(key=lambda dot: dot.x)
        series.append(Series(name or "TTFT", dots, loose=sum(dot.x < len(codec) for dot in dots)))
    svg = line_chart(series, x_label="keyframes per GOP", y_label="TTFT, ms", categories=categories)
    note = "Median from the scheduled time with its 95% interval; same clips and questions in every column."
    return Plot(f"keyframes-{cache}", f"TTFT over keyframes per GOP, dense frames beside: {cache}", note, svg)


def length_plot(points: Sequence[Point]) -> Plot | None:
    """TTFT over the length of the video."""
    videos = [point for point in points if point["clip"] is not None]
    if len({point["clip"]["seconds"] for point in videos}) < 2:
        return None
    series = []
    for name, group in _groups(videos, keep_request=True, without=("seconds",)):
        dots = [_dot(float(point["clip"]["seconds"]), point) for point in group]
        series.append(Series(name or "TTFT", sorted(dots, key=lambda dot: dot.x)))
    svg = line_chart(series, x_label="length of the video, s", y_label="TTFT, ms")
    return Plot("length", "TTFT over video length", "Median from the scheduled time with its 95% interval.", svg)


def load_plot(report: dict[str, Any], points: Sequence[Point], over: str) -> Plot | None:
    """Latency over the rate of requests or the number of users, with the knee."""
    chosen = [point for point in points if (point["load"]["arrival"] == "closed") == (over == "concurrency")]
    groups = list(_groups(chosen, keep_request=True, without=(over,)))
    if len({point["load"][over] for point in chosen}) < 2 or len(groups) > _MOST_LINES:
        return None
    series: list[Series] = []
    for name, group in groups:
        group = sorted(group, key=lambda point: float(point["load"][over]))
        colour = len(series) // 2
        for quantile, dashed in (("p50", False), ("p95", True)):
            dots = [_dot(float(point["load"][over]), point, quantile) for point in group]
            series.append(Series(f"{name} {quantile}".strip(), dots, dashed, colour))
    knees = [knee for knee in report["knees"] if knee["over"] == over and knee["sustained"] is not None]
    line = (knees[0]["sustained"], "sustained") if len(knees) == 1 and knees[0]["exceeded"] is not None else None
    unit = "requests per second" if over == "rate" else "users at a time"
    svg = line_chart(series, x_label=unit, y_label="TTFT, ms", line_at=line)
    return Plot(over, f"Latency over {over}", "TTFT from the scheduled time with 95% intervals.", svg)


def quantiles_plot(points: Sequence[Point]) -> Plot | None:
    """Median and p95 of TTFT at every point."""
    if not points:
        return None
    bars = [
        Bar(
            point["label"],
            [("median", point["metrics"]["ttft_s"]["p50"]["value"] * 1e3)],
            ("p95", point["metrics"]["ttft_s"]["p95"]["value"] * 1e3),
        )
        for point in points
    ]
    return Plot("points", "TTFT at every point", "From the scheduled time.", bar_chart(bars, x_label="TTFT, ms"))


def stages_plot(points: Sequence[Point]) -> Plot | None:
    """Where the time to the first token went, by the server's own account."""
    bars = []
    for point in points:
        if point["stages"] is None:
            continue
        medians, left = point["stages"]["median_s"], point["stages"]["check"]["unexplained_s"]
        parts = [(name, medians.get(name, 0.0) * 1e3) for name in STAGES]
        bars.append(Bar(point["label"], [*parts, ("elsewhere", max(left, 0.0) * 1e3)]))
    if not bars:
        return None
    note = (
        "Medians of the server's stages (usage.timings) from the request's first byte; elsewhere: what the client's "
        "clock has beyond their sum."
    )
    return Plot("stages", "Where the time to the first token goes", note, bar_chart(bars, x_label="ms"))


def tokens_plot(points: Sequence[Point]) -> Plot | None:
    """What prompts are made of, beside dense frames."""
    bars = []
    for point in points:
        tokens = point["tokens"]
        if tokens is None or "i_tokens" not in tokens:
            continue
        names = (("keyframes", "i_tokens"), ("delta slots", "p_tokens"), ("text", "text_tokens"))
        parts = [(name, float(max(tokens[key], 0))) for name, key in names]
        dense = tokens.get("dense_tokens")
        bars.append(Bar(point["label"], parts, None if dense is None else ("dense frames", float(dense))))
    if not bars:
        return None
    note = "Medians of usage; the mark is what at most 64 dense RGB frames of the same clip take."
    return Plot("tokens", "Token account", note, bar_chart(bars, x_label="tokens"))


def _dot(x: float, point: Point, quantile: str = "p50") -> Dot:
    found = point["metrics"]["ttft_s"][quantile]
    return Dot(x, found["value"] * 1e3, found["low"] * 1e3, found["high"] * 1e3)


def _groups(
    points: Sequence[Point], *, keep_request: bool = False, without: Sequence[str] = ()
) -> Iterator[tuple[str, list[Point]]]:
    """Points by what else distinguishes them."""
    out = {*without} if keep_request else {*without, "request"}
    found: dict[str, list[Point]] = {}
    for point in points:
        name = ", ".join(describe(key, value) for key, value in point["place"].items() if key not in out)
        found.setdefault(name, []).append(point)
    yield from found.items()


def _varied(points: Sequence[Point], key: str) -> int:
    return len({str(point[key]) for point in points})
