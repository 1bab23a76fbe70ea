"""Serves a folder's clips over HTTP to servers that fetch them: `python -m cope_loadtest.file_server FOLDER [HOST]`."""

from __future__ import annotations

import http.server
import sys
import threading
from functools import partial


class _Files(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def main() -> None:
    """Print the port, serve until standard input ends: whoever started this is then gone, too."""
    folder = sys.argv[1]
    host = sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1"
    server = http.server.ThreadingHTTPServer((host, 0), partial(_Files, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)  # noqa: T201 - this is how its address is told
    sys.stdin.buffer.read()
    server.shutdown()


if __name__ == "__main__":
    main()
