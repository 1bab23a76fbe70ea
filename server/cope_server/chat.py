"""vLLM's chat routes, with video options in front of its handlers, the account and the times behind them."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import TYPE_CHECKING, Annotated, Any

from cope_model import account
from cope_server import clocks
from cope_server.account import video_account
from cope_server.errors import CLIENT_CLOSED_REQUEST, ending_clearly
from cope_server.files.routes import uploads_of
from cope_server.parts import PartError, translate_messages
from cope_server.stages import RequestClock, timings

if TYPE_CHECKING:
    from fastapi import APIRouter
    from starlette.responses import Response

_USAGE = b'"usage":{'
_NO_CHOICES = b'"choices":[]'  # the last chunk of a stream


def make_router() -> APIRouter:
    """Routes that take messages. vLLM is imported here and not above: the module is loaded to list plugins, too."""
    from fastapi import APIRouter, Depends, Request, Response
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
        clock = clocks.clock_of(raw_request.scope)
        clocks.current.set(clock)
        try:
            with ending_clearly():
                response = await chat.create_chat_completion(request, raw_request)
        finally:
            if clock is not None:
                _note(clock, request, videos)
        if response is None:  # the client has left; nobody will read this
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        return response if clock is None or response.status_code != 200 else _with_account(response, clock)

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


def _note(clock: RequestClock, request: Any, videos: account.RequestVideos) -> None:
    """What the request carried, as far as it was loaded, and what it is called."""
    loaded = videos.in_order()
    clock.saw(loaded, _media(request))
    if loaded:
        clock.account = video_account(loaded, videos.geometry)
    clock.request_id = f"chatcmpl-{clock.request_id or request.request_id}"  # as vLLM makes it


def _media(request: Any) -> set[str]:
    """Kinds of the media parts of a request."""
    contents = [message.get("content") if isinstance(message, dict) else None for message in request.messages]
    parts = [part for content in contents if isinstance(content, list) for part in content if isinstance(part, dict)]
    return {kind for kind in ("video", "image") for part in parts if f"{kind}_url" in part}


def _with_account(response: Response, clock: RequestClock) -> Response:
    """Add `usage.video` and `usage.timings` to an answer, or to the usage chunk of a stream."""
    from starlette.responses import StreamingResponse

    if isinstance(response, StreamingResponse):
        response.body_iterator = _stream(response.body_iterator, clock)
        return response
    response.body = add_to_usage(bytes(response.body), clock)
    response.headers["content-length"] = str(len(response.body))
    return response


async def _stream(chunks: AsyncIterable[Any], clock: RequestClock) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        raw = chunk.encode() if isinstance(chunk, str) else bytes(chunk)
        yield add_to_usage(raw, clock) if _NO_CHOICES in raw else raw


def add_to_usage(body: bytes, clock: RequestClock) -> bytes:
    """Add `video` and `timings` to the usage block of an answer's JSON; one without a usage block passes unchanged.

    The JSON is not parsed: an answer may be long, and within its strings the quotes of such a key would be escaped.
    """
    more = {"video": clock.account} if clock.account else {}
    words = json.dumps({**more, "timings": timings(clock, time.perf_counter())}, separators=(",", ":"))
    return body.replace(_USAGE, _USAGE + words.encode()[1:-1] + b",", 1)
