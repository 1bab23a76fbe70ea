"""The real server, started once for all end-to-end tests, and a web server for its URLs."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
from requirements import require
from serving import Server, start, stop


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose prefill is cut into small chunks, so that chunking really happens."""
    require("ENGINE", find_spec("vllm") is not None, "vLLM is not installed (make setup)")
    folder = tmp_path_factory.mktemp("media")
    log = tmp_path_factory.mktemp("log") / "server.log"
    words = ("--max-num-batched-tokens", "256", "--max-model-len", "16384", "--allowed-local-media-path", str(folder))
    words += ("--allow-private-media", "127.0.0.1")  # where the web server of `files` is
    running = start(folder, log, *words)
    try:
        yield running
    finally:
        stop(running)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder and the address of a web server for it."""
    folder = tmp_path_factory.mktemp("web")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{httpd.server_address[1]}"
    httpd.shutdown()
