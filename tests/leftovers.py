"""What a program may leave behind on the machine."""

from __future__ import annotations

import os


def shared_memory() -> set[str]:
    """Named shared memory, but for what vLLM and others who may run on this machine come and go with."""
    return {name for name in os.listdir("/dev/shm") if not name.startswith(("sem.", "psm_"))}
