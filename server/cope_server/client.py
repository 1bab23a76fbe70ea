"""A small client of the chat route for the command line: sends a video, yields what comes back, keeps the clock."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

DEFAULT_URL = "http://127.0.0.1:8000"
_TIMEOUT = httpx.Timeout(30.0, read=600.0)


class ServerError(ValueError):
    """The server refused a request, or none answers."""


@dataclass(slots=True)
class Answer:
    """A streamed answer and its clock; complete once `stream` has ended.

    Attributes:
        text: what has arrived so far.
        ttft_s: from sending to the first chunk with content, seconds; None if none came.
        e2el_s: from sending to the end, seconds.
        usage: the server's usage block.
    """

    text: str = ""
    ttft_s: float | None = None
    e2el_s: float = 0.0
    usage: dict[str, Any] = field(default_factory=dict)


def is_up(url: str) -> bool:
    """Whether a server answers its health route."""
    try:
        return httpx.get(f"{url}/health", timeout=2.0).status_code == 200
    except httpx.HTTPError:
        return False


def data_uri(path: Path) -> str:
    """A file as a data URI."""
    return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()


def first_model(url: str) -> str:
    """Name of the model that the server serves.

    Raises:
        ServerError: no server answers, or it has no model.
    """
    try:
        response = httpx.get(f"{url}/v1/models", headers=_headers(), timeout=10.0)
    except httpx.HTTPError as error:
        raise ServerError(f"no server answers at {url} ({error}); start one with `make serve`") from error
    _check(response)
    models = response.json()["data"]
    if not models:
        raise ServerError(f"the server at {url} serves no model")
    return str(models[0]["id"])


def stream(
    url: str, model: str, video_url: str, question: str, options: dict[str, Any], max_tokens: int, answer: Answer
) -> Iterator[str]:
    """Ask about one video and yield pieces of text as they arrive.

    Args:
        url: base address of the server.
        model: a name from `/v1/models`.
        video_url: https, data or file URL.
        question: what to ask.
        options: video options, as in `cope_codec.VideoOptions`.
        max_tokens: longest answer.
        answer: filled on the way.

    Raises:
        ServerError: the server refused the request or broke off.
    """
    content = [
        {"type": "video_url", "video_url": {"url": video_url, **options}},
        {"type": "text", "text": question},
    ]
    body = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_completion_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    payload = json.dumps(body).encode()  # before the clock starts: encoding is this client's business
    headers = {**_headers(), "content-type": "application/json"}
    with httpx.Client(timeout=_TIMEOUT) as client:
        started = time.perf_counter()
        try:
            with client.stream("POST", f"{url}/v1/chat/completions", content=payload, headers=headers) as response:
                if response.status_code != 200:
                    response.read()
                    _check(response)
                for line in response.iter_lines():
                    yield from _read_event(line, answer, started)
        except httpx.HTTPError as error:
            raise ServerError(f"the connection to {url} broke: {error}") from error
        answer.e2el_s = time.perf_counter() - started


def _read_event(line: str, answer: Answer, started: float) -> Iterator[str]:
    if not line.startswith("data: {"):
        return
    event = json.loads(line[len("data: ") :])
    if "error" in event:
        raise ServerError(event["error"].get("message", "the server broke off the answer"))
    answer.usage = event.get("usage") or answer.usage
    for choice in event.get("choices", []):
        piece = (choice.get("delta") or {}).get("content")
        if piece:
            if answer.ttft_s is None:
                answer.ttft_s = time.perf_counter() - started
            answer.text += piece
            yield piece


def _headers() -> dict[str, str]:
    key = os.environ.get("OPENAI_API_KEY")
    return {"authorization": f"Bearer {key}"} if key else {}


def _check(response: httpx.Response) -> None:
    if response.status_code == 200:
        return
    try:
        error = response.json()["error"]
        message = f"{error['message']} ({error['param']})" if error.get("param") else error["message"]
    except (ValueError, KeyError, TypeError):
        message = response.text[:200]
    raise ServerError(f"HTTP {response.status_code}: {message}")
