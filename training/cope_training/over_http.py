"""Asks a running server the held-out questions, as any client would, and compares its words with the right answers."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import httpx

from cope_training import jobs
from cope_training.answering import Pair
from cope_training.scores import Answered

_TIMEOUT = httpx.Timeout(30.0, read=600.0)
_TYPES = {".avi": "video/x-msvideo"}


def answer(url: str, pairs: Sequence[Pair], options: dict[str, Any]) -> list[Answered]:
    """Ask about every clip over HTTP; the words of the answer, trimmed, must be one of the options.

    Args:
        url: base address of the server.
        pairs: clips; their files are sent.
        options: video options.

    Raises:
        ValueError: no server answers, or it refuses a question.
    """
    out: list[Answered] = []
    url = url.rstrip("/")
    with httpx.Client(base_url=url, timeout=_TIMEOUT) as client, jobs.bar("clips") as progress:
        task = progress.add_task("over HTTP", total=len(pairs), note="")
        model = _get_model(client, url)
        for clip, _ in pairs:
            kind = _TYPES.get(clip.path.suffix, "video/mp4")
            uri = f"data:{kind};base64," + base64.b64encode(clip.path.read_bytes()).decode()
            for question in clip.questions:
                text = _ask(client, model, uri, question.text, options)
                out.append(Answered(question, text, text == question.answer))
            progress.advance(task)
    return out


def _get_model(client: httpx.Client, url: str) -> str:
    try:
        return str(client.get("/v1/models").raise_for_status().json()["data"][0]["id"])
    except (httpx.HTTPError, KeyError, IndexError) as error:
        raise ValueError(f"no server with a model answers at {url}: {error}") from None


def _ask(client: httpx.Client, model: str, uri: str, question: str, options: dict[str, Any]) -> str:
    body = {
        "model": model,
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "video_url", "video_url": {"url": uri, **options}},
                    {"type": "text", "text": question},
                ],
            }
        ],
        "max_completion_tokens": 8,
        "temperature": 0,
    }
    try:
        response = client.post("/v1/chat/completions", json=body)
    except httpx.HTTPError as error:
        raise ValueError(f"the server broke off: {error}") from None
    if response.status_code != 200:
        raise ValueError(f"the server refused a question (HTTP {response.status_code}): {response.text[:300]}")
    return str(response.json()["choices"][0]["message"]["content"]).strip()
