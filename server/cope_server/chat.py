"""vLLM's chat and Responses routes, with video options in front of its handlers, account and times behind them."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cope_model import account
from cope_server import clocks
from cope_server.account import video_account
from cope_server.errors import CLIENT_CLOSED_REQUEST, ending_clearly
from cope_server.files.routes import uploads_of
from cope_server.parts import PartError, translate_messages
from cope_server.response_parts import media_kinds, to_chat_parts, translate_input
from cope_server.stages import RequestClock, timings

if TYPE_CHECKING:
    from fastapi import APIRouter
    from starlette.responses import Response

_USAGE = b'"usage":{'


def make_router() -> APIRouter:
    """Routes that take messages. vLLM is imported here and not above: the module is loaded to list plugins, too."""
    from fastapi import APIRouter, Depends, Request, Response
    from pydantic import BeforeValidator
    from vllm.entrypoints.openai.chat_completion import api_router as chat
    from vllm.entrypoints.openai.chat_completion.protocol import BatchChatCompletionRequest, ChatCompletionRequest
    from vllm.entrypoints.openai.responses import api_router as responses
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
    from vllm.entrypoints.scale_out.render import api_router as render
    from vllm.entrypoints.serve.tokenize import api_router as tokenize
    from vllm.entrypoints.serve.tokenize.protocol import TokenizeRequest
    from vllm.entrypoints.serve.utils.api_utils import validate_json_request

    router = APIRouter()

    def answered(handler: Callable[[Any, Any], Any], shape: _Shape) -> Callable[[Any, Any], Any]:
        async def answer(request: Any, raw_request: Any) -> Any:
            videos = _begin(raw_request)
            clock = clocks.clock_of(raw_request.scope)
            clocks.current.set(clock)
            try:
                with ending_clearly():
                    response = await handler(request, raw_request)
            finally:
                if clock is not None:
                    clock.request_id = shape.request_id(request, clock.request_id)
                    _note(clock, shape.media(request), videos)
            if response is None:  # the client has left; nobody will read this
                return Response(status_code=CLIENT_CLOSED_REQUEST)
            if clock is None or response.status_code != 200:
                return response
            return _with_account(response, clock, shape.last_chunk)

        return answer

    def hand_over(handler: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        async def handed_over(request: Any, raw_request: Any) -> Any:
            _begin(raw_request)
            with ending_clearly():
                return await handler(request, raw_request)

        return handed_over

    async def respond(request: Any, raw_request: Any) -> Any:
        to_chat_parts(request)
        return await responses.create_responses(request, raw_request)

    async def render_response(request: Any, raw_request: Any) -> Any:
        to_chat_parts(request)
        return await render.render_responses(request, raw_request)

    routes: dict[str, tuple[Any, Callable[[Any, Any], Any]]] = {
        "/v1/chat/completions": (ChatCompletionRequest, answered(chat.create_chat_completion, _CHAT)),
        "/v1/chat/completions/batch": (BatchChatCompletionRequest, hand_over(chat.create_batch_chat_completion)),
        "/v1/chat/completions/render": (ChatCompletionRequest, hand_over(render.render_chat_completion)),
        "/v1/responses": (ResponsesRequest, answered(respond, _RESPONSE)),
        "/v1/responses/render": (ResponsesRequest, hand_over(render_response)),
        "/tokenize": (TokenizeRequest, hand_over(tokenize.tokenize)),
    }
    for path, (model, endpoint) in routes.items():
        translation = _translated(translate_input if model is ResponsesRequest else translate_messages)
        # FastAPI reads a route's types from its annotations; ours differ from route to route.
        body = Annotated[model, BeforeValidator(translation)]  # type: ignore[valid-type]  # made at run time
        endpoint.__annotations__ = {"request": body, "raw_request": Request}
        endpoint.__name__ = path.strip("/").replace("/", "_")
        router.post(path, dependencies=[Depends(validate_json_request)])(endpoint)
    return router


def _translated(translate: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Callable[[Any], Any]:
    def translated(data: Any) -> Any:
        from cope_model.media_errors import MediaError

        try:
            return translate(data) if isinstance(data, dict) else data
        except PartError as error:
            raise MediaError(error.code, str(error), parameter=error.param) from error

    return translated


def _begin(raw_request: Any) -> account.RequestVideos:
    """Start the account of a request: the connector checks and notes its videos there."""
    state = raw_request.app.state
    videos = account.RequestVideos(state.cope_geometry, state.cope_context_tokens, uploads_of(raw_request))
    account.current.set(videos)
    return videos


def _note(clock: RequestClock, media: set[str], videos: account.RequestVideos) -> None:
    """What the request carried, as far as it was loaded."""
    loaded = videos.in_order()
    clock.saw(loaded, media)
    if loaded:
        clock.account = video_account(loaded, videos.geometry)


def _media(request: Any) -> set[str]:
    """Kinds of the media parts of a request."""
    contents = [message.get("content") if isinstance(message, dict) else None for message in request.messages]
    parts = [part for content in contents if isinstance(content, list) for part in content if isinstance(part, dict)]
    return {kind for kind in ("video", "image") for part in parts if f"{kind}_url" in part}


@dataclass(frozen=True, slots=True)
class _Shape:
    """How requests and answers of a route look.

    Attributes:
        media: kinds of the media parts of a request.
        request_id: of a request, as the answer's `id` has it; takes the client's `X-Request-Id`, too.
        last_chunk: tells the chunk of a stream that has the usage block.
    """

    media: Callable[[Any], set[str]]
    request_id: Callable[[Any, str | None], str]
    last_chunk: bytes


_CHAT = _Shape(_media, lambda request, given: f"chatcmpl-{given or request.request_id}", b'"choices":[]')
_RESPONSE = _Shape(media_kinds, lambda request, _: str(request.request_id), b"event: response.completed")


def _with_account(response: Response, clock: RequestClock, last_chunk: bytes) -> Response:
    """Add `usage.video` and `usage.timings` to an answer, or to the usage chunk of a stream."""
    from starlette.responses import StreamingResponse

    if isinstance(response, StreamingResponse):
        response.body_iterator = _stream(response.body_iterator, clock, last_chunk)
        return response
    response.body = add_to_usage(bytes(response.body), clock)
    response.headers["content-length"] = str(len(response.body))
    return response


async def _stream(chunks: AsyncIterable[Any], clock: RequestClock, last_chunk: bytes) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        raw = chunk.encode() if isinstance(chunk, str) else bytes(chunk)
        yield add_to_usage(raw, clock) if last_chunk in raw else raw


def add_to_usage(body: bytes, clock: RequestClock) -> bytes:
    """Add `video` and `timings` to the usage block of an answer's JSON; one without a usage block passes unchanged.

    The JSON is not parsed: an answer may be long, and within its strings the quotes of such a key would be escaped.
    """
    more = {"video": clock.account} if clock.account else {}
    words = json.dumps({**more, "timings": timings(clock, time.perf_counter())}, separators=(",", ":"))
    before, usage, after = body.rpartition(_USAGE)  # a response repeats its tools, whose schemas come before the usage
    return before + usage + words.encode()[1:-1] + b"," + after if usage else body
