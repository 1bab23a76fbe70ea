"""A small client for the command line: uploads a video, asks about it, yields what comes back, keeps the clock."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import httpx

DEFAULT_URL = "http://127.0.0.1:8000"
_TIMEOUT = httpx.Timeout(30.0, read=600.0)


class ServerError(ValueError):
    """The server refused a request, or none answers.

    Attributes:
        code: the server's own, as in docs/errors.md; None if it gave none.
        param: what of the request is at fault; None if nothing is.
    """

    def __init__(self, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.param = code, param


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
        raise _nobody(url, error) from error
    _check(response)
    try:
        return str(response.json()["data"][0]["id"])
    except IndexError:
        raise ServerError(f"the server at {url} serves no model") from None
    except (ValueError, KeyError, TypeError):
        raise ServerError(f"what answers at {url} is no OpenAI-compatible server") from None


def upload(
    url: str,
    file: BinaryIO,
    name: str,
    expires_after_s: int | None = None,
    prefetch: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> str:
    """Upload a video piece by piece.

    Args:
        url: base address of the server.
        file: is read to its end, a little at a time.
        name: for people.
        expires_after_s: seconds after which the server forgets it by itself; None is never.
        prefetch: work to do in advance, `primitives` or `prefill`; `prefetch_state` tells how far it is.
        options: video options of the questions that it is for.

    Returns:
        The file's id.

    Raises:
        ServerError: the server refused it, or went away.
    """
    fields = {"purpose": "vision"}
    if expires_after_s is not None:
        fields |= {"expires_after[anchor]": "created_at", "expires_after[seconds]": str(expires_after_s)}
    if prefetch is not None:
        fields |= {"prefetch": prefetch, **{f"options[{key}]": str(value) for key, value in (options or {}).items()}}
    try:
        response = httpx.post(
            f"{url}/v1/files", data=fields, files={"file": (name, file)}, headers=_headers(), timeout=_TIMEOUT
        )
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise _nobody(url, error) from error
    except httpx.HTTPError as error:
        raise ServerError(f"the upload to {url} broke off: {error}") from error
    _check(response)
    return str(response.json()["id"])


def prefetch_state(url: str, file_id: str) -> dict[str, Any]:
    """`status` (queued, running, completed or failed) and perhaps `error` of an upload's work in advance.

    Raises:
        ServerError: the server refused, or went away.
    """
    return dict(_of_file("GET", url, file_id).json().get("prefetch") or {})


def delete_file(url: str, file_id: str) -> None:
    """Forget an uploaded file.

    Raises:
        ServerError: the server refused, or went away.
    """
    _of_file("DELETE", url, file_id)


def _of_file(method: str, url: str, file_id: str) -> httpx.Response:
    """The server's answer about an uploaded file."""
    try:
        response = httpx.request(method, f"{url}/v1/files/{file_id}", headers=_headers(), timeout=_TIMEOUT)
    except httpx.HTTPError as error:
        raise _nobody(url, error) from error
    _check(response)
    return response


def video_part(video: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a message that holds a video.

    Args:
        video: its URL (http, data, file), or the id of an uploaded file.
        options: video options, as in `cope_codec.VideoOptions`.
    """
    if video.startswith("file-"):
        return {"type": "file", "file": {"file_id": video, **options}}
    return {"type": "video_url", "video_url": {"url": video, **options}}


def stream(
    url: str, model: str, part: Mapping[str, Any], question: str, max_tokens: int, answer: Answer
) -> Iterator[str]:
    """Ask about one video and yield pieces of text as they arrive.

    Args:
        url: base address of the server.
        model: a name from `/v1/models`.
        part: the video, as `video_part` makes it.
        question: what to ask.
        max_tokens: longest answer.
        answer: filled on the way.

    Raises:
        ServerError: the server refused the request or broke off.
    """
    content = [part, {"type": "text", "text": question}]
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


def _nobody(url: str, error: Exception) -> ServerError:
    return ServerError(f"no server answers at {url} ({error}); start one with `make serve`")


def _headers() -> dict[str, str]:
    key = os.environ.get("OPENAI_API_KEY")
    return {"authorization": f"Bearer {key}"} if key else {}


def _check(response: httpx.Response) -> None:
    if response.status_code == 200:
        return
    try:
        error = response.json()["error"]
        message, code, param = str(error["message"]), error.get("code"), error.get("param")
    except (ValueError, KeyError, TypeError):
        message, code, param = response.text[:200], None, None
    # vLLM's own refusals have the HTTP status for a code.
    raise ServerError(f"HTTP {response.status_code}: {message}", code if isinstance(code, str) else None, param)
