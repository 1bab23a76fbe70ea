"""`POST /v1/chat/completions`: vLLM's own handler, with video options in front and the token account behind."""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

from cope_model import account
from cope_server.account import video_account
from cope_server.clocks import clock_of
from cope_server.parts import PartError, translate_messages

if TYPE_CHECKING:
    from fastapi import APIRouter
    from starlette.responses import Response

    from cope_codec import VideoPlan

_USAGE = b'"usage":{'


def make_router() -> APIRouter:
    """The chat route. vLLM is imported here and not above: the module is loaded to list plugins, too."""
    from fastapi import APIRouter, Depends, Request
    from pydantic import model_validator
    from vllm.entrypoints.openai.chat_completion import api_router as vllm_chat
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.serve.utils.api_utils import validate_json_request
    from vllm.exceptions import VLLMValidationError

    class VideoChatCompletionRequest(ChatCompletionRequest):  # type: ignore[misc]
        """A chat completion request whose `video_url` parts may carry video options."""

        @model_validator(mode="before")
        @classmethod
        def _translate(cls, data: Any) -> Any:
            try:
                return translate_messages(data) if isinstance(data, dict) else data
            except PartError as error:
                raise VLLMValidationError(str(error), parameter=error.param) from error

    router = APIRouter()

    # The annotations below are looked up at run time, in this function's scope.
    async def create_chat_completion(request: Any, raw_request: Any) -> Any:
        loaded: list[account.LoadedVideo] = []
        account.current.set(loaded)
        response = await vllm_chat.create_chat_completion(request, raw_request)
        plans = [video.plan for video in account.in_order(loaded)]
        clock = clock_of(raw_request.scope)
        if clock is not None:
            clock.input = _kind(request, plans)
        if plans and response.status_code == 200:
            return _with_account(response, video_account(plans, raw_request.app.state.cope_geometry))
        return response

    create_chat_completion.__annotations__ = {"request": VideoChatCompletionRequest, "raw_request": Request}
    router.post("/v1/chat/completions", dependencies=[Depends(validate_json_request)])(create_chat_completion)
    return router


def _kind(request: Any, plans: Sequence[VideoPlan]) -> str:
    """Label of the request's latency: what the model had to read."""
    if plans:
        return "dense" if all(plan.mode == "dense" for plan in plans) else "codec"
    for message in request.messages:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list) and any(isinstance(part, dict) and "image_url" in part for part in content):
            return "image"
    return "text"


def _with_account(response: Response, video: dict[str, Any]) -> Response:
    """Add `usage.video` to an answer, or to the usage chunks of a stream."""
    from starlette.responses import JSONResponse, StreamingResponse

    if isinstance(response, StreamingResponse):
        response.body_iterator = _stream(response.body_iterator, lambda chunk: add_to_event(chunk, video))
        return response
    body = json.loads(bytes(response.body))
    if isinstance(body.get("usage"), dict):
        body["usage"]["video"] = video
    headers = {name: value for name, value in response.headers.items() if name != "content-length"}
    return JSONResponse(body, status_code=response.status_code, headers=headers)


async def _stream(chunks: AsyncIterable[Any], change: Callable[[bytes], bytes]) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        raw = chunk.encode() if isinstance(chunk, str) else bytes(chunk)
        yield change(raw) if _USAGE in raw else raw


def add_to_event(event: bytes, video: dict[str, Any]) -> bytes:
    """Add `usage.video` to a server-sent event that has a usage block; other events pass unchanged."""
    if not event.startswith(b"data: {"):
        return event
    body = json.loads(event[len(b"data: ") :])
    if isinstance(body.get("usage"), dict):
        body["usage"]["video"] = video
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"
