"""What a program may leave behind on the machine."""

from __future__ import annotations

import gc
import os
import time


def shared_memory() -> set[str]:
    """Named shared memory, but for what vLLM and others who may run on this machine come and go with."""
    return {name for name in os.listdir("/dev/shm") if not name.startswith(("sem.", "psm_"))}


def descriptors(at_most: int | None = None, patience_s: float = 5.0) -> int:
    """Open descriptors of this process. What waits for the garbage collector or for a thread to end is none that stays.

    Args:
        at_most: wait until there are no more than that.
        patience_s: how long; without `at_most`, until their number has stayed the same for a moment.
    """
    end = time.monotonic() + patience_s
    last = -1
    while True:
        gc.collect()
        count = len(os.listdir("/proc/self/fd"))
        if time.monotonic() > end or (count == last if at_most is None else count <= at_most):
            return count
        last = count
        time.sleep(0.05)
