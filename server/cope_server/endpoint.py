"""The vLLM endpoint plugin: puts our routes and clocks on vLLM's FastAPI app."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import Namespace

    from fastapi import FastAPI
    from starlette.datastructures import State


class CoPEEndpoint:
    """Loaded by vLLM when `VLLM_PLUGINS` names `cope`."""

    name = "cope"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Add the routes; the engine does not exist yet."""
        from cope_server.chat import make_router
        from cope_server.clocks import ClockMiddleware
        from cope_server.errors import add_error_handlers

        app.add_middleware(ClockMiddleware)
        add_error_handlers(app)
        app.include_router(make_router())

    async def init_state(self, engine_client: Any, state: State, args: Namespace) -> None:
        """Keep what the routes need, and warm up before the first client can connect."""
        from cope_server.warmup import warm_up

        geometry = getattr(engine_client.model_config.hf_config, "geometry", None)
        if geometry is None:
            raise ValueError("the cope endpoint plugin serves cope_videolm and LLaVA-Video models only")
        state.cope_geometry = geometry
        state.cope_context_tokens = engine_client.model_config.max_model_len
        if os.environ.get("COPE_WARMUP", "1") != "0":
            await warm_up(state)


def make_plugin() -> CoPEEndpoint:
    """Entry point of the group `vllm.endpoint_plugins`."""
    return CoPEEndpoint()
