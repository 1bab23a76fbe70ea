"""The server and the demo as processes: they start, they end, and nothing of them stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import httpx
import psutil
from messages import text, user
from serving import Server, start, stop


def test_demo_prints_everything_with_the_server_that_runs(server: Server) -> None:
    done = demo("--url", server.url)
    assert done.returncode == 0, done.stderr
    assert f"using the server at {server.url}" in done.stderr
    assert_complete(done.stdout)


def test_demo_starts_a_server_and_leaves_nothing_running() -> None:
    mark = uuid.uuid4().hex  # whatever the demo starts inherits its environment
    done = demo("--url", "http://127.0.0.1:9", env={**os.environ, "COPE_TEST_MARK": mark})
    assert done.returncode == 0, done.stderr
    assert_complete(done.stdout)
    assert not [process for process in psutil.process_iter() if marked(process, mark)]


def marked(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get("COPE_TEST_MARK") == mark and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def test_sigterm_ends_the_server_and_its_engine(tmp_path: Path) -> None:
    """Also in the middle of an answer, once its time is over: the client is told."""
    running = start(tmp_path, tmp_path / "server.log", "--shutdown-timeout", "1")
    children = psutil.Process(running.process.pid).children(recursive=True)
    assert children
    body = {"model": "cope-tiny", "messages": user(text("Hello")), "max_completion_tokens": 6000, "ignore_eos": True}
    with httpx.stream(
        "POST", f"{running.url}/v1/chat/completions", json={**body, "stream": True}, timeout=60
    ) as answer:
        lines = (line for line in answer.iter_lines() if line)
        next(lines)
        assert stop(running) == 0
        last = list(lines)[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "cancelled"
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def demo(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cope_server.cli", "demo", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, env=env)


def assert_complete(out: str) -> None:
    for label in ("answer", "TTFT", "E2EL", "I tokens", "P tokens", "text tokens", "64 dense frames"):
        assert label in out, out
    assert "4,608" in out  # 64 frames of 72 tokens
