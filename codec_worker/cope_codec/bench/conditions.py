"""Says under which conditions a figure was measured."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import av
import numba
import numpy as np


def conditions() -> dict[str, Any]:
    """The machine and the versions: cpu, cores, load, python, pyav, ffmpeg, numpy, numba, machine, system."""
    codec = ".".join(map(str, av.library_versions["libavcodec"]))
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "load_1min": round(os.getloadavg()[0], 2),
        "niceness": os.nice(0),
        "python": platform.python_version(),
        "pyav": av.__version__,
        "libavcodec": codec,
        "numpy": np.__version__,
        "numba": numba.__version__,
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
    }


def cpu_name() -> str:
    """The processor's name as the kernel knows it, or its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
