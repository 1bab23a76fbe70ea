"""A server of our own for commands that need one: started as its user would, and stopped with everything it started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cope_server import client
from cope_server.commands.video_arguments import stderr

SERVE = ("cope_server.cli", "serve")
_START_TIMEOUT_S = 300
_STOP_TIMEOUT_S = 30


@contextmanager
def running_server(url: str, folder: Path) -> Iterator[str]:
    """The server at `url` if it answers, else one of our own that is gone when the block ends."""
    if client.is_up(url):
        stderr.print(f"using the server at {url}")
        yield url
    else:
        stderr.print(f"no server at {url}: starting one")
        with own_server(folder) as own:
            yield own


@contextmanager
def own_server(folder: Path, words: Sequence[str] = (), program: Sequence[str] = SERVE) -> Iterator[str]:
    """A server of our own, with the words of `cope serve`; gone when the block ends.

    Args:
        folder: its log is written there.
        words: model and options.
        program: a module of ours that starts a server, and its first words.

    Raises:
        ServerError: it did not start; the message has the end of its log.
    """
    log = folder / "server.log"
    port = _free_port()
    own = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", *program, *words, "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as output:
        # A session of its own: engine and workers are in its group, so that all of them can be stopped.
        process = subprocess.Popen(  # noqa: S603 - our own command
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        with stderr.status("starting a server (about half a minute)"):
            _wait(process, own, log)
        yield own
    finally:
        _stop(process)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not client.is_up(url):
        if process.poll() is not None or time.monotonic() > deadline:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
            raise client.ServerError(f"the server did not start:\n{tail}")
        time.sleep(0.25)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the server's whole process group to end, then make it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            continue
        break
    try:
        os.killpg(process.pid, signal.SIGKILL)  # an engine that outlived its server
    except ProcessLookupError:
        pass


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
