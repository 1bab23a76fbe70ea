"""Requests as clients write them, and what they should cost."""

from __future__ import annotations

import base64
import functools
import io
from typing import Any

import numpy as np
from PIL import Image

import cope_codec
from cope_model.presets import PRESETS

TINY = PRESETS["tiny"].geometry


def data_uri(data: bytes, media_type: str = "video/mp4") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def video(url: str | bytes, **options: Any) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": data_uri(url) if isinstance(url, bytes) else url, **options}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


@functools.cache
def picture(seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (9, 16, 3), np.uint8)
    return Image.fromarray(noise).resize((320, 180), Image.Resampling.BICUBIC)


def image(seed: int = 0) -> dict[str, Any]:
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return {"type": "image_url", "image_url": {"url": data_uri(buffer.getvalue(), "image/png")}}


def user(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def planned_tokens(data: bytes, **options: Any) -> int:
    plan = cope_codec.open(data, **options).plan
    return TINY.tokens(plan.i_frames, plan.p_frames)
