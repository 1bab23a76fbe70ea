"""`cope loadtest`: the load test's own command, and a server for it if none is running."""

from __future__ import annotations

import argparse
import shlex
import signal
import tempfile
from pathlib import Path

from cope_loadtest import command
from cope_server.local_server import own_server


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `cope loadtest`, and `--serve`."""
    for one in command.add_arguments(parser):
        one.add_argument(
            "--serve",
            nargs="?",
            const="",
            metavar="WORDS",
            help="start `cope serve WORDS` for the run, in place of --base-url; --serve='MODEL --vllm-option ...'",
        )


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand."""
    # A plain `kill` must clean up too (clips, a server), so it takes the same way out as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if getattr(arguments, "serve", None) is None:
        return command.run(arguments)
    with tempfile.TemporaryDirectory(prefix="cope-loadtest-server-") as folder:
        with own_server(Path(folder), shlex.split(arguments.serve)) as url:
            arguments.base_url = url
            return command.run(arguments)
