"""`cope demo`: a clip drawn on the spot, a question about its motion, a streamed answer, and what it cost."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cope_server import client
from cope_server.commands.ask import ask
from cope_server.commands.sample import add_clip_flags, description, draw_clip
from cope_server.commands.video_arguments import stderr, stdout

_START_TIMEOUT_S = 300
_STOP_TIMEOUT_S = 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `cope demo`."""
    parser.add_argument("--url", default=client.DEFAULT_URL, help=f"server to ask (default {client.DEFAULT_URL})")
    parser.add_argument("--question", help="another question than the clip's own")
    add_clip_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Make the clip, find or start a server, ask."""
    # A plain `kill` must stop the server too, so it takes the same way out as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="cope-demo-") as folder:
        clip = Path(folder) / "demo.mp4"
        asked = draw_clip(arguments, clip)
        with _server(arguments.url.rstrip("/"), Path(folder)) as url:
            model = client.first_model(url)
            stdout.print(f"clip      {description(arguments)}")
            stdout.print(f"question  {arguments.question or asked.text}", highlight=False)
            stdout.print("answer    ", end="")
            # At one keyframe per GOP, the whole clip's motion reaches the model as delta-tokens only.
            part = client.video_part(client.data_uri(clip), {"keyframes_per_gop": 1})
            ask(url, model, part, arguments.question or asked.text, 32)
            if not arguments.question:
                stdout.print(f"\nright     {asked.answer}", highlight=False)
    return 0


@contextmanager
def _server(url: str, folder: Path) -> Iterator[str]:
    """The server at `url` if it answers, else one of our own that is gone when the block ends."""
    if client.is_up(url):
        stderr.print(f"using the server at {url}")
        yield url
        return
    log = folder / "server.log"
    port = _free_port()
    own = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "cope_server.cli", "serve", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as output:
        # A session of its own: engine and workers are in its group, so that all of them can be stopped.
        process = subprocess.Popen(  # noqa: S603 - our own command
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        with stderr.status(f"no server at {url}: starting one (about half a minute)"):
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
