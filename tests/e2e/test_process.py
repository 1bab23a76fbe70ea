"""The demo as a process: it starts, it ends, and nothing of it stays."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid

import psutil
from serving import Server


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


def demo(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cope_server.cli", "demo", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, env=env)


def assert_complete(out: str) -> None:
    for label in ("answer", "TTFT", "E2EL", "I tokens", "P tokens", "text tokens", "64 dense frames"):
        assert label in out, out
    assert "4,608" in out  # 64 frames of 72 tokens
