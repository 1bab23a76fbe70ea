"""The report of a run: everything that was measured, as JSON, and whether it is good."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cope_loadtest.corpus.clips import Clip
from cope_loadtest.execute import Result, Target
from cope_loadtest.paper_form import codec_vs_dense
from cope_loadtest.scenario import Scenario
from cope_loadtest.selfcheck import ENOUGH_CHUNKS_PER_S, MOST_SHARE
from cope_loadtest.summary import summarise_point

FORMAT = 1
EXIT_OK, EXIT_SLO, EXIT_USAGE, EXIT_FAILED, EXIT_INTERRUPTED = 0, 1, 2, 3, 130


class ReportError(ValueError):
    """A file that is no report."""


def make_report(
    scenario: Scenario, target: Target, result: Result, clips: Sequence[Clip], seed: int, started: datetime
) -> dict[str, Any]:
    """Everything about a run.

    Args:
        scenario: what was asked for.
        target: the server.
        result: what was measured.
        clips: the corpus.
        seed: of the run.
        started: when.
    """
    moments = [record.scheduled for measured in result.points for record in measured.records]
    origin = min(moments, default=0.0)
    points = [summarise_point(measured, scenario.slo, scenario.expected) for measured in result.points]
    knees = [{"label": label, **knee.to_json()} for label, knee in result.knees]
    report: dict[str, Any] = {
        "format": FORMAT,
        "scenario": {
            "name": scenario.name,
            "description": scenario.description,
            "rounds": scenario.rounds,
            "requests": {name: _plain(asdict(request)) for name, request in scenario.requests.items()},
            "slo": asdict(scenario.slo),
            "expected": list(scenario.expected),
            "patience": asdict(scenario.patience),
            "sweep": None if scenario.sweep is None else _plain(asdict(scenario.sweep)),
        },
        "conditions": conditions(target, seed, started),
        "selfcheck": {"chunks_per_s": None if result.chunks_per_s is None else round(result.chunks_per_s)},
        "points": [
            {
                **summary,
                "request": list(measured.point.requests),
                "cache": measured.point.cache,
                "transport": measured.point.transport,
                "load": asdict(measured.point.load),
                "clip": _plain(asdict(measured.point.clip)) if measured.point.has_video else None,
            }
            for summary, measured in zip(points, result.points, strict=True)
        ],
        "knees": knees,
        "codec_vs_dense": codec_vs_dense(result.points),
        "uploads_s": {name: round(seconds, 6) for name, seconds in result.uploads_s.items()},
        "corpus": [clip.facts for clip in clips],
        "requests": [record.to_json(origin) for measured in result.points for record in measured.records],
    }
    report["verdict"] = judge(report, interrupted=result.interrupted, trouble=result.trouble)
    return report


def judge(report: dict[str, Any], *, interrupted: bool, trouble: str | None = None) -> dict[str, Any]:
    """Whether a run is good.

    Returns:
        `exit_code`: 130 if it was interrupted, 3 if requests failed or none was measured, 1 if an SLO was missed, else
            0.
        `failed` counts requests, `slo_missed` names points. In a sweep it is no fault to miss an SLO, as long as one
        value is sustained. `trouble` says why the run could not go on, if so. `warnings` are about the measuring.
    """
    points = report["points"]
    failed = sum(point["failed"] for point in points)
    empty = [point["label"] for point in points if not point["requests"]]
    if report["scenario"]["sweep"] is None:
        missed = [point["label"] for point in points if not point.get("goodput", {"met": True})["met"]]
    else:
        missed = [knee["label"] for knee in report["knees"] if knee["sustained"] is None]
    code = EXIT_OK
    if interrupted:
        code = EXIT_INTERRUPTED
    elif failed or empty or not points or trouble:
        code = EXIT_FAILED
    elif missed:
        code = EXIT_SLO
    return {
        "exit_code": code,
        "interrupted": interrupted,
        "trouble": trouble,
        "failed": failed,
        "not_measured": empty,
        "slo_missed": missed,
        "warnings": list(_warnings(report)),
    }


def _warnings(report: dict[str, Any]) -> list[str]:
    """One line for each kind, with the worst of the points that it concerns; the points have the rest."""
    warnings = []
    rate = report["selfcheck"]["chunks_per_s"]
    if rate is not None and rate < ENOUGH_CHUNKS_PER_S:
        warnings.append(f"this client reads {rate:,} chunks per second of a core, less than {ENOUGH_CHUNKS_PER_S:,.0f}")
    points = report["points"]
    busy = [point for point in points if point["overhead"] is not None and point["overhead"]["too_much"]]
    if busy:
        worst = max(busy, key=lambda point: float(point["overhead"]["share"]))
        warnings.append(
            f"the client itself takes more than {MOST_SHARE:.0%} of the median TTFT at {_count(busy, points)}; most at "
            f"{worst['label']}: {worst['overhead']['ttft_s'] * 1e3:.1f} ms, {worst['overhead']['share']:.0%}"
        )
    dark = [point for point in points if point["stages"] is not None and not point["stages"]["check"]["explained"]]
    if dark:
        worst = max(dark, key=lambda point: abs(float(point["stages"]["check"]["share"])))
        check = worst["stages"]["check"]
        warnings.append(
            f"the server's stages do not explain TTFT at {_count(dark, points)}; least at {worst['label']}: "
            f"{check['unexplained_s'] * 1e3:.1f} of {check['ttft_sent_s'] * 1e3:.1f} ms are left"
        )
    found = "cope_codec_cache_hits_total"
    warm = [point for point in points if point["cache"] == "cold" and point["counters"].get(found, 0) > 0]
    if warm:
        worst = max(warm, key=lambda point: float(point["counters"][found]))
        warnings.append(
            f"the server found primitives in its cache at {_count(warm, points)} that should be cold; most at "
            f"{worst['label']}: {worst['counters'][found]:g} GOPs"
        )
    return warnings


def _count(some: Sequence[Any], every: Sequence[Any]) -> str:
    return f"{len(some)} of {len(every)} points"


def conditions(target: Target, seed: int, started: datetime) -> dict[str, Any]:
    """What a figure cannot be read without: server, machine, versions, load of the machine."""
    return {
        "started": started.astimezone(UTC).isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "base_url": target.base_url,
        "model": target.model,
        "server": target.reported,
        "seed": seed,
        "client": {
            "machine": platform.machine(),
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)),
            "load_1min": round(os.getloadavg()[0], 2),
            "python": platform.python_version(),
            "cope_serve": _version("cope-serve"),
            "httpx": _version("httpx"),
            "uvloop": _version("uvloop"),
        },
    }


def write_json(report: dict[str, Any], path: Path) -> None:
    """Write a report; a file of that name is replaced at once or not at all."""
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(json.dumps(_finite(report), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a report back.

    Raises:
        ReportError: it is none, or of another format.
        OSError: the file cannot be read.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ReportError(f"{path}: no JSON: {error}") from None
    if not isinstance(report, dict) or report.get("format") != FORMAT or not isinstance(report.get("points"), list):
        raise ReportError(f"{path}: no report of `cope loadtest run` (format {FORMAT})")
    return report


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _finite(value: Any) -> Any:
    """JSON has no infinities: what a server sends of them becomes null."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
