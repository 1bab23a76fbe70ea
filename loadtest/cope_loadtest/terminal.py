"""What people see: progress while it runs, tables at the end."""

from __future__ import annotations

import statistics
from collections import deque
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from cope_loadtest.outcomes import OK
from cope_loadtest.records import Record

stdout = Console()
stderr = Console(stderr=True)
_LATEST = 50


class LiveProgress:
    """A line that tells how the load at hand goes on; a context manager."""

    def __init__(self, console: Console = stderr) -> None:
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[told]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            refresh_per_second=4,  # drawing takes time from the client
        )
        self._task = self._progress.add_task("starting", total=None, told="")  # another one for each load
        self._latest: deque[float] = deque(maxlen=_LATEST)
        self._failed: dict[str, int] = {}

    def __enter__(self) -> LiveProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, label: str, expected: int | None) -> None:
        """A load begins."""
        self._latest.clear()
        self._failed.clear()
        self._next(label, expected)

    def ended(self, record: Record) -> None:
        """A request has ended."""
        counts = record.phase != "warmup"
        if record.ttft_s is not None and record.ok and counts:
            self._latest.append(record.ttft_s)
        if record.outcome != OK:
            self._failed[record.outcome] = self._failed.get(record.outcome, 0) + 1
        told = f"TTFT {statistics.median(self._latest) * 1e3:,.0f} ms" if self._latest else ""
        told += "".join(f"  [yellow]{name} {count}[/]" for name, count in self._failed.items())
        self._progress.update(self._task, advance=counts, told=told)

    def note(self, text: str) -> None:
        """What is being done."""
        self._next(text, None)

    def count(self, label: str, total: int) -> None:
        """Something that is counted begins; `tick` counts."""
        self._next(label, total)

    def _next(self, label: str, total: int | None) -> None:
        self._progress.remove_task(self._task)
        self._task = self._progress.add_task(escape(label), total=total, told="")

    def tick(self) -> None:
        """One is done."""
        self._progress.advance(self._task)


def tables(report: dict[str, Any]) -> list[RenderableType]:
    """A report for the terminal."""
    parts: list[RenderableType] = [_points(report)]
    if report["codec_vs_dense"]:
        parts.append(_cuts(report["codec_vs_dense"]))
    for knee in report["knees"]:
        reason = f" ({knee['reason']})" if knee["reason"] else ""
        kept = "nothing" if knee["sustained"] is None else f"{knee['sustained']:g}"
        lost = "nothing that was tried" if knee["exceeded"] is None else f"{knee['exceeded']:g}"
        parts.append(f"{escape(knee['label'])}: keeps up with {knee['over']} {kept}, not with {lost}{reason}")
    verdict = report["verdict"]
    parts += [f"[yellow]warning[/] {escape(warning)}" for warning in verdict["warnings"]]
    if verdict["trouble"]:
        parts.append(f"[red]the run could not go on:[/] {escape(verdict['trouble'])}")
    if verdict["failed"]:
        parts.append(f"[red]{verdict['failed']} requests failed[/]")
    if verdict["not_measured"]:
        parts.append(f"[red]nothing was measured at[/] {escape(', '.join(verdict['not_measured']))}")
    if verdict["slo_missed"]:
        parts.append(f"[red]SLO missed at[/] {escape(', '.join(verdict['slo_missed']))}")
    if verdict["interrupted"]:
        parts.append("[red]interrupted:[/] these are the requests up to then")
    return parts


def ms(estimate: dict[str, float] | None) -> str:
    """An estimate of seconds as milliseconds, with its interval."""
    if estimate is None:
        return "-"
    low, value, high = (estimate[name] * 1e3 for name in ("low", "value", "high"))
    digits = 1 if value < 100 else 0
    return f"{value:,.{digits}f} ({low:,.{digits}f}-{high:,.{digits}f})"


def _points(report: dict[str, Any]) -> Table:
    table = Table(
        box=SIMPLE_HEAD,
        caption="ms from the scheduled time: medians (TTFT with its 95% interval), and p95 of TTFT",
        title=escape(f"{report['scenario']['name']} on {report['conditions']['model']}"),
    )
    headings = ["point", "ok", "others", "req/s", "TTFT", "p95", "TPOT", "E2EL"]
    with_slo = any("goodput" in point for point in report["points"])
    for heading in (*headings, "good") if with_slo else headings:
        table.add_column(heading, justify="left" if heading in ("point", "others") else "right", overflow="fold")
    for point in report["points"]:
        metrics, outcomes = point["metrics"], dict(point["outcomes"])
        ok = outcomes.pop(OK, 0)
        goodput = point.get("goodput")
        table.add_row(
            escape(point["label"]),
            str(ok),
            " ".join(f"{name} {count}" for name, count in outcomes.items()),
            f"{point['requests_per_s']:.2f}",
            ms((metrics["ttft_s"] or {}).get("p50")),
            _short((metrics["ttft_s"] or {}).get("p95")),
            _short((metrics["tpot_s"] or {}).get("p50")),
            _short((metrics["e2el_s"] or {}).get("p50")),
            *([f"{goodput['share']:.0%}"] if goodput is not None else []),
            style="yellow" if point["failed"] else "",
        )
    return table


def _short(estimate: dict[str, float] | None) -> str:
    if estimate is None:
        return "-"
    value = estimate["value"] * 1e3
    return f"{value:,.{1 if value < 100 else 0}f}"


def _cuts(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=SIMPLE_HEAD, caption="ms, medians; cut: what is saved of the time of dense frames (95% interval)")
    for heading in ("I per GOP", "users", "cache", "TTFT", "dense TTFT", "TTFT cut", "E2EL cut"):
        table.add_column(heading, justify="left" if heading == "cache" else "right")
    for row in rows:
        table.add_row(
            str(row["keyframes_per_gop"]),
            "-" if row["concurrency"] is None else str(row["concurrency"]),
            row["cache"],
            f"{row['ttft_s'] * 1e3:,.1f}",
            f"{row['dense_ttft_s'] * 1e3:,.1f}",
            *(
                f"{row[name]:.1%} ({row[name + '_interval'][0] * 100:.0f} to {row[name + '_interval'][1] * 100:.0f})"
                for name in ("ttft_cut", "e2el_cut")
            ),
        )
    return table
