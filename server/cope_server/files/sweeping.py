"""Expired files vanish by themselves: a task of the server sweeps its store now and then."""

from __future__ import annotations

import asyncio
import logging
import sqlite3

from cope_server.files.store import FileStore

_EVERY_S = 60.0

logger = logging.getLogger("vllm.cope_server.files")  # below vLLM's logger, so that its settings apply


async def keep_swept(store: FileStore, every_s: float = _EVERY_S) -> None:
    """Sweep until cancelled; what goes wrong is logged and tried again."""
    while True:
        await asyncio.sleep(every_s)
        try:
            await asyncio.to_thread(store.sweep)
        except (OSError, sqlite3.Error) as error:
            logger.warning("uploaded files could not be swept: %s", error)
