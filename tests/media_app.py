"""Our routes for files and plans as an application without an engine, with a codec worker of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from fastapi import FastAPI
from requirements import require

from cope_codec.pool import CodecPool
from cope_model.presets import PRESETS
from cope_server.errors import add_error_handlers
from cope_server.files.routes import router as files
from cope_server.files.store import FileStore
from cope_server.plans import router as plans

GEOMETRY = PRESETS["tiny"].geometry


@contextmanager
def media_app(store: FileStore, context_tokens: int) -> Iterator[FastAPI]:
    """Files of `store`, videos of the tiny model's shape.

    Args:
        store: closed by whoever made it.
        context_tokens: what a plan must fit into.
    """
    require("ENGINE", find_spec("vllm") is not None, "vLLM is not installed (make setup)")
    from cope_model import extraction
    from cope_model.connector import CoPEConnector

    with CodecPool(1) as pool:
        pool.wait_until_warm()
        extraction.install(pool, GEOMETRY.side)
        app = FastAPI()
        add_error_handlers(app)
        app.include_router(files)
        app.include_router(plans)
        state = app.state
        state.cope_files, state.cope_codec_executor, state.cope_keyed = store, pool, False
        state.cope_geometry, state.cope_context_tokens, state.cope_connector = GEOMETRY, context_tokens, CoPEConnector
        try:
            yield app
        finally:
            extraction.uninstall()
