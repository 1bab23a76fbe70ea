"""`cope loadtest`: run a scenario against a server, compare two reports, or our clock with other tools'."""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from cope_loadtest.report import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK

if TYPE_CHECKING:
    from cope_loadtest.assign import Assignment
    from cope_loadtest.corpus.clips import Clip, Wanted
    from cope_loadtest.execute import Target
    from cope_loadtest.scenario import Scenario
    from cope_loadtest.terminal import LiveProgress

DEFAULT_URL = "http://127.0.0.1:8000"
# Flags that stand for values of the scenario: place in it, type, what to call the value, help.
_OVERRIDES: dict[str, tuple[str, type, str, str]] = {
    "requests": ("load.requests", int, "N", "requests of each point"),
    "duration": ("load.duration_s", float, "SECONDS", "length of each point"),
    "rate": ("load.rate", float, "N", "requests per second (open loops)"),
    "concurrency": ("load.concurrency", int, "N", "users (closed loops)"),
    "warmup": ("load.warmup", int, "N", "requests before each round, not counted"),
    "rounds": ("rounds", int, "N", "measure each point in so many pieces, in turns with the others"),
    "corpus": ("corpus.folder", str, "DIR", "your own clips instead of drawn ones"),
    "transport": ("transport", str, "HOW", "how clips reach the server: data, url, upload or file"),
    "cache": ("cache", str, "STATE", "cold or warm"),
}


def add_arguments(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """Flags of `cope loadtest` and its subcommands; returns the parsers of those that measure a server."""
    what = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    run_parser = what.add_parser("run", help="measure a server")
    run_parser.add_argument(
        "scenario", nargs="+", help="bundled scenarios (cope loadtest list) or TOML files, run one after the other"
    )
    _add_server(run_parser)
    _add_corpus(run_parser)
    run_parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of the report, or of a folder for each of several (default: a new one)",
    )
    run_parser.add_argument("--file-host", default="127.0.0.1", metavar="HOST", help="this machine, for transport url")
    run_parser.add_argument("--no-selfcheck", action="store_true", help="do not measure the client itself")
    check_parser = what.add_parser("crosscheck", help="do other load tests find the same time to the first token?")
    _add_scenario(check_parser)
    _add_server(check_parser)
    _add_corpus(check_parser)
    check_parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the report and of the tools' files (default: a new one)"
    )
    check_parser.add_argument(
        "--file-host", default="127.0.0.1", metavar="HOST", help="this machine, for transport url"
    )
    for name, title in (("vllm", "vllm bench serve"), ("guidellm", "guidellm")):
        check_parser.add_argument(
            f"--{name}", metavar="PYTHON", help=f"interpreter that has {title} (default: this one, if it has)"
        )
    export_parser = what.add_parser("export", help="write a scenario's requests as files for other load tests")
    _add_scenario(export_parser)
    export_parser.add_argument("--base-url", default=DEFAULT_URL, metavar="URL", help=f"server (default {DEFAULT_URL})")
    export_parser.add_argument("--model", default="cope-tiny", help="its name for the model (default cope-tiny)")
    _add_corpus(export_parser)
    export_parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="folder of the files")
    compare_parser = what.add_parser("compare", help="what changed from one report to another")
    compare_parser.add_argument("before", type=Path, metavar="A.json")
    compare_parser.add_argument("after", type=Path, metavar="B.json")
    compare_parser.add_argument(
        "--threshold", type=float, default=0.05, help="relative change that is no regression yet (default 0.05)"
    )
    compare_parser.add_argument("--json", action="store_true", help="print JSON")
    what.add_parser("list", help="the bundled scenarios")
    return [run_parser, check_parser]


def _add_scenario(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "scenario", nargs="?", default="crosscheck", help="a bundled scenario or a TOML file (default crosscheck)"
    )


def _add_server(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base-url", default=DEFAULT_URL, metavar="URL", help=f"server (default {DEFAULT_URL})")
    parser.add_argument(
        "--model", help="model name (default: the server's first; with it the server is not asked before the run)"
    )


def _add_corpus(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, help="draw the same clips again (default: others every time)")
    parser.add_argument("--clips", type=Path, metavar="DIR", help="keep drawn clips here, and use those that are")
    group = parser.add_argument_group("instead of what the scenario says")
    for name, (_, kind, metavar, text) in _OVERRIDES.items():
        group.add_argument(f"--{name}", type=kind, metavar=metavar, help=text)
    group.add_argument(
        "--set", action="append", default=[], metavar="PLACE=VALUE", help="any value, in TOML: --set load.ramp_s=5"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run a subcommand."""
    commands: dict[str, Callable[[argparse.Namespace], int]] = {
        "run": _run,
        "crosscheck": _crosscheck,
        "export": _export,
        "compare": _compare,
        "list": _list,
    }
    return commands[arguments.what](arguments)


def _list(_: argparse.Namespace) -> int:
    from cope_loadtest.scenario import bundled, load_scenario
    from cope_loadtest.terminal import stdout

    for name, path in bundled().items():
        stdout.print(f"[bold]{name}[/]  {load_scenario(path).description}", soft_wrap=True)
    return EXIT_OK


def _crosscheck(arguments: argparse.Namespace) -> int:
    from cope_loadtest.crosscheck_command import crosscheck
    from cope_loadtest.scenario import find, load_scenario

    seed = _seed(arguments)
    return crosscheck(load_scenario(find(arguments.scenario), _overrides(arguments)), arguments, seed)


def _export(arguments: argparse.Namespace) -> int:
    from cope_loadtest.crosscheck_command import export
    from cope_loadtest.scenario import find, load_scenario

    seed = _seed(arguments)
    return export(load_scenario(find(arguments.scenario), _overrides(arguments)), arguments, seed)


def _compare(arguments: argparse.Namespace) -> int:
    from cope_loadtest.comparison import compare, comparison_tables
    from cope_loadtest.report import read_json
    from cope_loadtest.terminal import stdout

    if arguments.threshold < 0:
        raise ValueError(f"--threshold must not be negative, not {arguments.threshold:g}")
    found = compare(read_json(arguments.before), read_json(arguments.after), arguments.threshold)
    if arguments.json:
        stdout.print_json(data=found)
    else:
        for part in comparison_tables(found):
            stdout.print(part)
    return int(found["exit_code"])


def _run(arguments: argparse.Namespace) -> int:
    from cope_loadtest.assign import Assignment
    from cope_loadtest.scenario import find, load_scenario

    seed = _seed(arguments)
    overrides = _overrides(arguments)
    scenarios = [load_scenario(find(name), overrides) for name in arguments.scenario]
    worst = EXIT_OK
    for number, scenario in enumerate(scenarios):
        out = arguments.out or Path(f"loadtest-{scenario.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}")
        if arguments.out is not None and len(scenarios) > 1:
            out = out / scenario.name
        # Each has clips of its own: those of the last one are in the server's caches.
        code = _measure(scenario, Assignment(scenario, seed + number), arguments, seed + number, out)
        worst = max(worst, code)
        if code == EXIT_INTERRUPTED:
            break
    return worst


def _measure(scenario: Scenario, assignment: Assignment, arguments: argparse.Namespace, seed: int, out: Path) -> int:
    """Make the corpus, run the scenario, write the reports; returns the exit code."""
    from cope_loadtest.execute import Execution
    from cope_loadtest.html import write_html, write_plots
    from cope_loadtest.report import make_report, write_json
    from cope_loadtest.terminal import LiveProgress, stdout, tables

    started = datetime.now(UTC)
    target = find_target(arguments)
    if target is None:
        return EXIT_FAILED
    out.mkdir(parents=True, exist_ok=True)  # before anything is measured: a folder that cannot be written is known now
    with ExitStack() as stack:
        progress = stack.enter_context(LiveProgress())
        clips, folder = make_corpus(scenario, assignment.wanted, arguments.clips, progress, stack)
        execution = Execution(
            scenario,
            target,
            assignment,
            clips,
            folder,
            seed,
            progress,
            check=not arguments.no_selfcheck,
            host=arguments.file_host,
        )
        result = run_loop(execution.run())
    report = make_report(scenario, target, result, clips, seed, started)
    write_json(report, out / "report.json")
    write_html(report, out / "report.html")
    write_plots(report, out / "plots")
    for part in tables(report):
        stdout.print(part)
    stdout.print(f"{out / 'report.json'}\n{out / 'report.html'}", highlight=False, soft_wrap=True)
    return int(report["verdict"]["exit_code"])


def find_target(arguments: argparse.Namespace) -> Target | None:
    """The server that the flags name; None, and a line on stderr, if it does not answer as one."""
    from cope_loadtest.execute import Target
    from cope_loadtest.terminal import stderr

    api_key = os.environ.get("OPENAI_API_KEY")
    base_url = arguments.base_url.rstrip("/").removesuffix("/v1")
    if not base_url.startswith(("http://", "https://")):
        raise ValueError(f"--base-url must begin with http:// or https://, not {arguments.base_url!r}")
    model, reported = (arguments.model, {}) if arguments.model else ask_server(base_url, api_key)
    if model is None:
        stderr.print(f"cope: {reported['error']}", markup=False, soft_wrap=True)
        return None
    return Target(base_url, model, api_key, reported)


def make_corpus(
    scenario: Scenario, wanted: Sequence[Wanted], keep: Path | None, progress: LiveProgress, stack: ExitStack
) -> tuple[list[Clip], Path]:
    """Draw clips, or read the user's own.

    Args:
        scenario: it names the user's folder, if there is one.
        wanted: which clips to draw, or how many of the user's to take.
        keep: folder for drawn clips; None: a temporary one, gone with the stack.
        progress: is told.
        stack: ends with the run.

    Returns:
        The clips, in order, and their folder.
    """
    from cope_loadtest.assign import own_clips
    from cope_loadtest.corpus.clips import make_clips, read_folder

    if scenario.folder is not None:
        progress.note(f"reading {scenario.folder}")
        return own_clips(len(wanted), read_folder(scenario.folder), scenario.folder), scenario.folder
    folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cope-loadtest-")))
    folder.mkdir(parents=True, exist_ok=True)
    progress.count("drawing and encoding clips", len(wanted))
    return list(make_clips(wanted, folder, progress.tick).values()), folder


def run_loop(work: Coroutine[Any, Any, Any]) -> Any:
    """Run on uvloop, or on asyncio's own loop where uvloop is not installed."""
    try:
        import uvloop
    except ModuleNotFoundError:
        return asyncio.run(work)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def ask_server(base_url: str, api_key: str | None) -> tuple[str | None, dict[str, Any]]:
    """Its first model and its version; None and an `error` if it does not answer as such a server does."""
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        with httpx.Client(base_url=base_url, headers=headers, timeout=10.0, trust_env=False) as client:
            models = client.get("/v1/models")
            version = client.get("/version")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return None, {"error": f"no server answers at {base_url} ({error}); start one with `cope serve`"}
    try:
        model = models.raise_for_status().json()["data"][0]["id"]
    except (httpx.HTTPStatusError, ValueError, KeyError, IndexError, TypeError):
        words = f"HTTP {models.status_code} to /v1/models"
        return None, {"error": f"the server at {base_url} names no model ({words}); give one with --model"}
    reported = {"software": models.headers.get("server")}
    try:
        reported["version"] = version.json()["version"]
    except (ValueError, KeyError, TypeError):
        pass  # not every server has that route
    return str(model), reported


def _seed(arguments: argparse.Namespace) -> int:
    if arguments.seed is None:
        return secrets.randbelow(1_000_000)
    if arguments.seed < 0:
        raise ValueError(f"--seed must not be negative, not {arguments.seed}")
    return int(arguments.seed)


def _overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    import tomllib

    found: dict[str, Any] = {}
    for name, (place, *_) in _OVERRIDES.items():
        value = getattr(arguments, name)
        if value is not None:
            found[place] = str(Path(value).absolute()) if name == "corpus" else value
    for text in arguments.set:
        place, _, written = text.partition("=")
        try:
            found[place.strip()] = tomllib.loads(f"value = {written}")["value"]
        except tomllib.TOMLDecodeError:
            raise ValueError(f"--set must look like load.ramp_s=5, with the value in TOML, not {text!r}") from None
    return found
