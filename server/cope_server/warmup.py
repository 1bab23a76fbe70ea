"""One small request through the whole server before it listens: the first user does not pay for compilation."""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from typing import Any

logger = logging.getLogger("vllm.cope_server.warmup")  # below vLLM's logger, so that its settings apply


async def warm_up(state: Any) -> None:
    """Ask the chat handler about a generated clip, in codec and in dense form.

    It compiles the kernels of the codec worker, fills the renderer's lazily made parts and lets the engine meet both
    kinds of input. A refusal is logged and does not keep the server from starting: the request itself may not suit the
    server's options (a context too short for the clip).
    """
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.exceptions import VLLMClientError

    from cope_codec import samples
    from cope_model.url_options import attach

    started = time.perf_counter()
    pictures = list(samples.scene(320, 240, 2.5, 12, pan_px_s=(20.0, 0.0)))
    clip = await asyncio.to_thread(samples.encode, pictures, fps=12, gop=24)
    url = "data:video/mp4;base64," + base64.b64encode(clip).decode()
    for options in ({}, {"mode": "transcode"}, {"frames": 2}):
        request = ChatCompletionRequest(
            messages=[
                {
                    "role": "user",
                    "content": [
                        {"type": "video_url", "video_url": {"url": attach(url, options, "warm-up")}},
                        {"type": "text", "text": "What moves?"},
                    ],
                }
            ],
            max_completion_tokens=2,
            temperature=0.0,
        )
        try:
            answer = await state.openai_serving_chat.create_chat_completion(request, None)
        except (VLLMClientError, ValueError) as error:
            logger.warning("warm-up request refused: %s", error)
            continue
        if getattr(answer, "error", None) is not None:
            logger.warning("warm-up request failed: %s", answer.error.message)
    logger.info("warm-up took %.1f s", time.perf_counter() - started)
