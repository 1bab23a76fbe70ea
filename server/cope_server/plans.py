"""`POST /v1/videos/plan`: what a video would cost under sets of options, before anything is decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from cope_codec.errors import CodecError
from cope_codec.options import VideoOptions, json_schema
from cope_server.account import plan_account
from cope_server.files.store import ID_PATTERN

if TYPE_CHECKING:
    from cope_codec.plan import VideoPlan

MOST_SETS = 16  # of options in one request: each is a pass over the packets

_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "url": {"type": "string", "description": "as in a video_url part; or else:"},
                    "file_id": {"type": "string", "pattern": ID_PATTERN, "description": "of an uploaded file"},
                    "options": {
                        "description": "one set of options of a video_url part, or several",
                        "anyOf": [
                            json_schema(),
                            {"type": "array", "items": json_schema(), "minItems": 1, "maxItems": MOST_SETS},
                        ],
                    },
                },
            }
        }
    },
}

router = APIRouter(tags=["videos"])


@router.post("/v1/videos/plan", openapi_extra={"requestBody": _BODY}, response_model=None)
async def plan_video(request: Request) -> dict[str, Any] | Response:
    """Tokens and slots of a video for every set of options, with the count of dense frames beside it."""
    from vllm.entrypoints.serve.utils.api_utils import with_cancellation

    from cope_model import account
    from cope_server.errors import CLIENT_CLOSED_REQUEST, ending_clearly
    from cope_server.files.routes import uploads_of

    state = request.app.state
    url, source, sets = _read(await _body(request))
    account.current.set(account.RequestVideos(state.cope_geometry, state.cope_context_tokens, uploads_of(request)))

    async def plan(_: None, __: Request) -> list[VideoPlan]:
        named = [(name, options) for name, options, _ in sets]
        plans: list[VideoPlan] = await state.cope_connector().plan_async(url, source, named)
        return plans

    with ending_clearly():
        plans = await with_cancellation(plan)(None, request)
    if plans is None:  # the client has left, and a worker is free
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return {
        "object": "video.plan",
        "context_tokens": state.cope_context_tokens,
        "plans": [_described(plan, given, state) for plan, (*_, given) in zip(plans, sets, strict=True)],
    }


def _described(plan: VideoPlan, given: dict[str, Any], state: Any) -> dict[str, Any]:
    """One plan: its account, and how it fits."""
    from cope_model.account import fitting_gops

    tokens = state.cope_geometry.tokens(plan.i_frames, plan.p_frames)
    return {
        "options": given,
        **plan_account([plan], state.cope_geometry),
        "tokens": tokens,
        "total_gops": plan.total_gops,
        "fits": tokens < state.cope_context_tokens,
        "gops_that_fit": fitting_gops(plan, state.cope_geometry, state.cope_context_tokens),
    }


async def _body(request: Request) -> dict[str, Any]:
    from cope_model.media_errors import MediaError

    try:
        body = await request.json()
    except (ValueError, RecursionError):
        raise MediaError("invalid_part", "the body is not JSON", parameter="body") from None
    if not isinstance(body, dict):
        raise MediaError("invalid_part", "the body must be a JSON object", parameter="body")
    for name in body:
        if name not in ("url", "file_id", "options"):
            raise MediaError("invalid_option", "there is no such field: url or file_id, and options", parameter=name)
    return body


def _read(body: dict[str, Any]) -> tuple[str, str, list[tuple[str, VideoOptions, dict[str, Any]]]]:
    """The video's URL, the field that it stood in, and the sets of options: name, parsed, and as they were given."""
    from cope_model.media_errors import MediaError, from_codec
    from cope_server.files.store import is_id

    named = [name for name in ("url", "file_id") if name in body]
    if len(named) != 1:
        raise MediaError("invalid_part", "give either url or file_id", parameter=named[-1] if named else "url")
    (source,) = named
    url = body[source]
    if not isinstance(url, str) or not url.strip():
        raise MediaError("invalid_part", f"{source} must be a text", parameter=source)
    if source == "file_id" and not is_id(url):
        raise MediaError("unknown_file", "there is no file with this id", parameter=source)
    given = body.get("options", {})
    several = isinstance(given, list)
    sets = given if several else [given]
    if not 1 <= len(sets) <= MOST_SETS or not all(isinstance(one, dict) for one in sets):
        raise MediaError("invalid_option", f"options is an object, or 1 to {MOST_SETS} of them", parameter="options")
    parsed = []
    for number, one in enumerate(sets):
        name = f"options[{number}]" if several else "options"
        try:
            parsed.append((name, VideoOptions.from_mapping(one), one))
        except CodecError as error:
            raise from_codec(error, name) from error
    return url, source, parsed
