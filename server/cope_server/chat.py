"""vLLM's chat routes, with video options in front of its handlers and the token account behind them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from cope_model import account
from cope_server.account import video_account
from cope_server.clocks import clock_of
from cope_server.errors import ending_clearly
from cope_server.files.routes import uploads_of
from cope_server.parts import PartError, translate_messages

if TYPE_CHECKING:
    from fastapi import APIRouter
    from starlette.responses import Response

    from cope_codec import VideoPlan

_USAGE = b'"usage":{'


def make_router() -> APIRouter:
    """Routes that take messages. vLLM is imported here and not above: the module is loaded to list plugins, too."""
    from fastapi import APIRouter, Depends, Request
    from pydantic import BeforeValidator
    from vllm.entrypoints.openai.chat_completion import api_router as chat
    from vllm.entrypoints.openai.chat_completion.protocol import BatchChatCompletionRequest, ChatCompletionRequest
    from vllm.entrypoints.scale_out.render import api_router as render
    from vllm.entrypoints.serve.tokenize import api_router as tokenize
    from vllm.entrypoints.serve.tokenize.protocol import TokenizeRequest
    from vllm.entrypoints.serve.utils.api_utils import validate_json_request

    router = APIRouter()

    async def answer(request: Any, raw_request: Any) -> Any:
        videos = _begin(raw_request)
        with ending_clearly():
            response = await chat.create_chat_completion(request, raw_request)
        loaded = videos.in_order()
        clock = clock_of(raw_request.scope)
        if clock is not None:
            clock.input = _kind(request, [video.plan for video in loaded])
        if loaded and response.status_code == 200:
            return _with_account(response, video_account(loaded, videos.geometry))
        return response

    def hand_over(handler: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        async def handed_over(request: Any, raw_request: Any) -> Any:
            _begin(raw_request)
            with ending_clearly():
                return await handler(request, raw_request)

        return handed_over

    routes: dict[str, tuple[Any, Callable[[Any, Any], Any]]] = {
        "/v1/chat/completions": (ChatCompletionRequest, answer),
        "/v1/chat/completions/batch": (BatchChatCompletionRequest, hand_over(chat.create_batch_chat_completion)),
        "/v1/chat/completions/render": (ChatCompletionRequest, hand_over(render.render_chat_completion)),
        "/tokenize": (TokenizeRequest, hand_over(tokenize.tokenize)),
    }
    for path, (model, endpoint) in routes.items():
        # FastAPI reads a route's types from its annotations; ours differ from route to route.
        body = Annotated[model, BeforeValidator(_translate)]  # type: ignore[valid-type]  # made at run time
        endpoint.__annotations__ = {"request": body, "raw_request": Request}
        endpoint.__name__ = path.strip("/").replace("/", "_")
        router.post(path, dependencies=[Depends(validate_json_request)])(endpoint)
    return router


def _translate(data: Any) -> Any:
    from cope_model.media_errors import MediaError

    try:
        return translate_messages(data) if isinstance(data, dict) else data
    except PartError as error:
        raise MediaError(error.code, str(error), parameter=error.param) from error


def _begin(raw_request: Any) -> account.RequestVideos:
    """Start the account of a request: the connector checks and notes its videos there."""
    state = raw_request.app.state
    videos = account.RequestVideos(state.cope_geometry, state.cope_context_tokens, uploads_of(raw_request))
    account.current.set(videos)
    return videos


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
