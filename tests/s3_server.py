"""A server that speaks S3, in a process of its own: vLLM looks into every module of its process, and Flask's globals
raise errors when they are looked at.
"""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from requirements import require
from serving import free_port

_START_S = 60.0


@contextmanager
def s3_server() -> Iterator[str]:
    """Its address; skips or fails where it cannot run."""
    found = all(map(find_spec, ("obstore", "boto3", "moto", "flask", "flask_cors")))
    require("S3", found, "obstore, moto or flask is not installed (make setup)")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + _START_S
        while not _answers(address):
            assert process.poll() is None and time.monotonic() < until, "the S3 server does not start"
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(10)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
