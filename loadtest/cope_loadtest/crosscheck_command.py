"""`cope loadtest crosscheck` and `export`: our requests for other load tests, and their figures beside ours."""

from __future__ import annotations

import argparse
import asyncio
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from cope_loadtest.client import make_client
from cope_loadtest.command import find_target, make_corpus, run_loop
from cope_loadtest.corpus.clips import Clip
from cope_loadtest.crosscheck import FLOOR_S, SHARE, Crosscheck, Found, Plan, Tool, as_json, check, compare, make_bodies
from cope_loadtest.peers import PEERS, Job, PeerError, version_of
from cope_loadtest.report import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, FORMAT, conditions, write_json
from cope_loadtest.scenario import Scenario
from cope_loadtest.tables import ScenarioError
from cope_loadtest.terminal import LiveProgress, stderr, stdout
from cope_loadtest.transports import Delivery

EXIT_DIFFERS = 1
_FEWEST = 5  # counted requests of each client, below which nothing is concluded


def crosscheck(scenario: Scenario, arguments: argparse.Namespace, seed: int) -> int:
    """Run the cross-check; returns the exit code: 0 if all agree, 1 if one does not, 3 if requests failed."""
    check(scenario)
    tools = asyncio.run(find_tools({name: getattr(arguments, name) for name in PEERS}))
    started = datetime.now(UTC)
    target = find_target(arguments)
    if target is None:
        return EXIT_FAILED
    out = arguments.out or Path(f"crosscheck-{started:%Y%m%d-%H%M%S}")
    out.mkdir(parents=True, exist_ok=True)
    plan = Plan(scenario, len(tools) + 1, seed)
    with ExitStack() as stack:
        progress = stack.enter_context(LiveProgress())
        clips, folder = make_corpus(scenario, plan.wanted, arguments.clips, progress, stack)
        run = Crosscheck(scenario, target, tools, plan, clips, folder, out, seed, progress, host=arguments.file_host)
        found: Found = run_loop(run.run())
    report = make_report(scenario, tools, found)
    report["conditions"] = conditions(target, seed, started)
    report["corpus"] = [clip.facts for clip in clips]
    write_json(report, out / "crosscheck.json")
    for part in report_tables(report):
        stdout.print(part)
    stdout.print(str(out / "crosscheck.json"), highlight=False, soft_wrap=True)
    return int(report["verdict"]["exit_code"])


async def find_tools(wanted: dict[str, str | None]) -> list[Tool]:
    """The tools that are installed, told on stderr.

    Args:
        wanted: interpreter of each by its short name; None is this one, where it need not be.

    Raises:
        PeerError: one is not where it should be, or none is anywhere.
    """
    tools = []
    for name, python in wanted.items():
        peer = PEERS[name]
        try:
            version = await version_of(peer, python or sys.executable)
        except PeerError as error:
            if python is not None:
                raise
            stderr.print(f"left out: {error} (--{name} PYTHON names another)", markup=False, soft_wrap=True)
            continue
        tools.append(Tool(peer, python or sys.executable, version))
    if not tools:
        raise PeerError("no other load test is installed: docs/loadtest.md says how to install them")
    return tools


def make_report(scenario: Scenario, tools: Sequence[Tool], found: Found) -> dict[str, Any]:
    """Everything about a cross-check but its conditions and corpus."""
    versions = {tool.peer.name: tool.version for tool in tools}
    pairs = list(zip(scenario.points, found.samples, strict=True))
    rows = [row for point, samples in pairs for row in compare(point, samples, versions)]
    few = any(min(row["n"], row["our_n"]) < _FEWEST for row in rows)
    code = EXIT_OK
    if found.interrupted:
        code = EXIT_INTERRUPTED
    elif found.trouble or few or len(rows) < len(pairs) * len(tools):
        code = EXIT_FAILED
    elif not all(row["agrees"] for row in rows):
        code = EXIT_DIFFERS
    return {
        "format": FORMAT,
        "scenario": {"name": scenario.name, "description": scenario.description, "rounds": scenario.rounds},
        "tools": versions,
        "allowed": {"share": SHARE, "floor_s": FLOOR_S},
        "rows": rows,
        "samples": [
            {
                "point": point.label,
                "our_ttft_scheduled_s": samples.scheduled,
                "our_ttft_s": samples.sent,
                "tools_ttft_s": samples.tools,
            }
            for point, samples in pairs
        ],
        "verdict": {
            "exit_code": code,
            "interrupted": found.interrupted,
            "trouble": found.trouble,
            "too_few": few,
        },
    }


def report_tables(report: dict[str, Any]) -> list[RenderableType]:
    """A cross-check for the terminal."""
    table = Table(
        box=SIMPLE_HEAD,
        caption=f"ms, medians of TTFT from sent (95% interval); to agree: {SHARE:.0%} of ours or {FLOOR_S * 1e3:g} ms",
    )
    for heading in ("point", "tool", "n", "its TTFT", "ours", "difference", ""):
        left = heading in ("point", "tool", "")
        table.add_column(heading, justify="left" if left else "right", overflow="fold", no_wrap=heading == "tool")
    for row in report["rows"]:
        low, high = (1e3 * value for value in row["difference_interval"])
        table.add_row(
            escape(row["point"]),
            escape(row["tool"]),
            str(row["n"]),
            f"{row['ttft_s'] * 1e3:,.1f}",
            f"{row['our_ttft_s'] * 1e3:,.1f}",
            f"{row['difference_s'] * 1e3:+,.1f} ({low:+,.1f} to {high:+,.1f})",
            "agrees" if row["agrees"] else "differs",
            style="" if row["agrees"] else "red",
        )
    parts: list[RenderableType] = [table]
    verdict = report["verdict"]
    if verdict["trouble"]:
        parts.append(f"[red]it could not go on:[/] {escape(verdict['trouble'])}")
    if verdict["too_few"]:
        parts.append(f"[red]fewer than {_FEWEST} requests:[/] nothing can be concluded; give more with --requests")
    if verdict["interrupted"]:
        parts.append("[red]interrupted:[/] these are the requests up to then")
    return parts


def export(scenario: Scenario, arguments: argparse.Namespace, seed: int) -> int:
    """Write a scenario's requests in each tool's form, and say how it is run; returns the exit code."""
    check(scenario)
    for point in scenario.points:
        if point.has_video and point.transport not in ("data", "file"):
            raise ScenarioError(f"transport must be data or file for an export, not {point.transport!r}")
    out: Path = arguments.out.absolute()  # the commands name files in it
    out.mkdir(parents=True, exist_ok=True)
    plan = Plan(scenario, 1, seed)
    with ExitStack() as stack:
        progress = stack.enter_context(LiveProgress())
        # With transport file, requests name the clips where they are: so they stay.
        clips, folder = make_corpus(scenario, plan.wanted, arguments.clips or out / "clips", progress, stack)
        for index in range(len(scenario.points)):
            run_loop(_export_point(scenario, plan, index, clips, folder, out, arguments, seed))
    return EXIT_OK


async def _export_point(
    scenario: Scenario,
    plan: Plan,
    index: int,
    clips: Sequence[Clip],
    folder: Path,
    out: Path,
    arguments: argparse.Namespace,
    seed: int,
) -> None:
    point = scenario.points[index]
    positions = [position for turn in range(scenario.rounds) for position in plan.positions(index, turn, 0)]
    async with make_client(arguments.base_url) as client, Delivery(client, folder) as delivery:
        bodies = await make_bodies(arguments.model, point, delivery, clips, positions, seed)
    stdout.print(f"{point.label}: {len(bodies)} requests", markup=False, soft_wrap=True)
    for name, peer in PEERS.items():
        place = out / f"{name}-{index + 1}"
        place.mkdir(exist_ok=True)
        job = Job(
            place, arguments.base_url, arguments.model, None, point.load.concurrency, [as_json(body) for body in bodies]
        )
        stdout.print(f"  {shlex.join(peer.prepare(job, 'python'))}", markup=False, highlight=False, soft_wrap=True)
