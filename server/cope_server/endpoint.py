"""The vLLM endpoint plugin: puts our routes and clocks on vLLM's FastAPI app."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
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
        from cope_server.access import guard
        from cope_server.admission import AdmissionMiddleware, Gate
        from cope_server.chat import make_router
        from cope_server.clocks import ClockMiddleware
        from cope_server.codec_metrics import RefreshMiddleware
        from cope_server.draining import Drain, DrainMiddleware
        from cope_server.errors import add_error_handlers
        from cope_server.files.routes import router as files
        from cope_server.limit_settings import LimitSettings
        from cope_server.plans import router as plans

        app.state.cope_gate = Gate(LimitSettings.from_environment())
        app.state.cope_drain = Drain()
        # The last one is called first.
        app.add_middleware(AdmissionMiddleware, gate=app.state.cope_gate)
        app.add_middleware(ClockMiddleware)
        app.add_middleware(RefreshMiddleware)
        guard(app)
        app.add_middleware(DrainMiddleware, drain=app.state.cope_drain)
        add_error_handlers(app)
        app.include_router(make_router())
        app.include_router(files)
        app.include_router(plans)
        app.router.lifespan_context = _closing_workers(app.router.lifespan_context)

    async def init_state(self, engine_client: Any, state: State, args: Namespace) -> None:
        """Keep what the routes need, and warm up before the first client can connect."""
        from cope_server import tracing
        from cope_server.access import salt_engine
        from cope_server.draining import drain_first
        from cope_server.engine_clock import ClockedEngine
        from cope_server.warmup import warm_up

        geometry = getattr(engine_client.model_config.hf_config, "geometry", None)
        if geometry is None:
            raise ValueError("the cope endpoint plugin serves cope_videolm and LLaVA-Video models only")
        state.cope_geometry = geometry
        state.cope_context_tokens = engine_client.model_config.max_model_len
        state.cope_connector = partial(_make_connector, engine_client.model_config)
        api_servers = getattr(args, "api_server_count", None) or 1
        salt_engine(engine_client)
        await _open_files(state, args)
        await _start_workers(state, geometry.side, api_servers)
        if os.environ.get("COPE_WARMUP", "1") != "0":
            await warm_up(state)
        for handler in (state.openai_serving_chat, state.openai_serving_responses):
            handler.engine_client = ClockedEngine(engine_client)
        state.cope_drain.also_end(state.cope_prefetches.close)
        drain_first(engine_client, state.cope_drain, asyncio.get_running_loop(), api_servers)
        if getattr(args, "otlp_traces_endpoint", None):
            tracing.switch_on()


def _make_connector(model_config: Any) -> Any:
    """A connector as vLLM makes one for each request."""
    from vllm import envs
    from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY

    return MEDIA_CONNECTOR_REGISTRY.load(
        envs.VLLM_MEDIA_CONNECTOR,
        media_io_kwargs=model_config.get_multimodal_config().media_io_kwargs,
        allowed_local_media_path=model_config.allowed_local_media_path,
        allowed_media_domains=model_config.allowed_media_domains,
    )


async def _start_workers(state: State, side: int, api_servers: int) -> None:
    """Put codec workers in charge of the videos of this process, and wait until they are warm."""
    from cope_codec import cache
    from cope_model import extraction
    from cope_server.codec_metrics import CodecMetrics
    from cope_server.codec_settings import CodecSettings

    settings = CodecSettings.from_environment()
    cache.shared.max_bytes = settings.cache_mb << 20
    executor = await asyncio.to_thread(settings.make_executor, api_servers)
    state.cope_codec_metrics = CodecMetrics(extraction.install(executor, side))
    state.cope_codec_executor = executor
    state.cope_gate.workers(executor.size)
    await asyncio.to_thread(executor.wait_until_warm)
    state.cope_codec_metrics.start()


async def _open_files(state: State, args: Namespace) -> None:
    """Open the store of uploaded files, and keep it swept."""
    from vllm import envs

    from cope_server.file_settings import FileSettings
    from cope_server.files.prefetch import Prefetches
    from cope_server.files.sweeping import keep_swept

    state.cope_keyed = any(args.api_key or [envs.VLLM_API_KEY])  # vLLM's own keys; ours have names (`access`)
    state.cope_files = await asyncio.to_thread(FileSettings.from_environment().open_store)
    state.cope_prefetches = Prefetches(state.cope_files, at_once=2)
    state.cope_files_sweeping = asyncio.create_task(keep_swept(state.cope_files))


def _closing_workers(lifespan: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """vLLM's lifespan of the app, at whose end the codec workers end too: plugins have no hook for it."""

    @asynccontextmanager
    async def closing(app: FastAPI) -> AsyncIterator[Any]:
        from cope_model import extraction

        async with lifespan(app) as state:
            try:
                yield state
            finally:
                if hasattr(app.state, "cope_prefetches"):
                    await app.state.cope_prefetches.close()
                extraction.uninstall()
                if hasattr(app.state, "cope_codec_executor"):
                    app.state.cope_codec_metrics.stop()
                    await asyncio.to_thread(app.state.cope_codec_executor.close)
                if hasattr(app.state, "cope_files_sweeping"):
                    app.state.cope_files_sweeping.cancel()
                    await asyncio.to_thread(app.state.cope_files.close)

    return closing


def make_plugin() -> CoPEEndpoint:
    """Entry point of the group `vllm.endpoint_plugins`."""
    return CoPEEndpoint()
