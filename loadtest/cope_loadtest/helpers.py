"""Starts the small servers of a run in processes of their own: in this one they would take the client's time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_STOP_S = 5.0


@contextmanager
def helper(module: str, *words: str) -> Iterator[str]:
    """Run a module of this package that prints its port and ends when its standard input does.

    Yields:
        its base address.

    Raises:
        RuntimeError: it did not start.
    """
    command = [sys.executable, "-m", f"cope_loadtest.{module}", *words]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603 - our own module
    assert process.stdin is not None and process.stdout is not None
    try:
        line = process.stdout.readline().strip()
        if not line.isdigit():
            raise RuntimeError(f"cope_loadtest.{module} did not start")
        yield f"http://127.0.0.1:{int(line)}"
    finally:
        process.stdin.close()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
