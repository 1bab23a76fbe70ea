"""Threads for what takes as long as a file does to come or go, so that nothing short waits behind it."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

# asyncio's own threads are few on a small machine (six on two cores). Files that go to an object store, or come from
# it, would hold all of them for minutes, and every other request with video would wait for one.
_threads = ThreadPoolExecutor(32, thread_name_prefix="cope-transfer")


async def in_thread(call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """`asyncio.to_thread` on these threads."""
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(_threads, lambda: context.run(call, *args, **kwargs))
