"""Starts and stops a Ray of this machine."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import psutil
from leftovers import shared_memory
from requirements import require


@contextmanager
def ray_of(cpus: int) -> Iterator[None]:
    """A Ray of so many CPUs; nothing of it may be left afterwards."""
    require("RAY", find_spec("ray") is not None, "Ray is not installed (pip install cope-serve[ray])")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # it would write a token to the home directory
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    before = shared_memory()
    folder = tempfile.mkdtemp(prefix="cope-ray-")  # pytest's are too deep for the names of Unix sockets
    ray.init(
        address="local",
        num_cpus=cpus,
        object_store_memory=200 << 20,
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=folder,
    )
    try:
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and (left := [*(shared_memory() - before), *_processes()]):
        time.sleep(0.05)
    assert not left, left


def _processes() -> list[str]:
    names = (process.info["name"] or "" for process in psutil.process_iter(["name"]))
    return [name for name in names if name.startswith("ray::") or name in ("raylet", "gcs_server")]
