"""Parts of the Responses API's `input`, turned into what vLLM's chat parser takes.

vLLM checks `input` against OpenAI's types, which know `input_file` and no video, and hands what passes to its chat
parser, which knows `video_url` and no `input_file`. So videos pass the check as `input_file` parts with a URL
(`translate_input`), and become `video_url` parts after it (`to_chat_parts`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cope_codec.errors import CodecError
from cope_codec.options import VideoOptions
from cope_model import isolation
from cope_model.url_options import attach, detach
from cope_server.files.store import is_id
from cope_server.parts import PartError

# type of a part: where it may name its video
_SOURCES = {"input_file": ("file_id", "file_url", "file_data"), "input_video": ("file_id", "video_url")}
_PASSED_OVER = ("type", "uuid", "filename", "detail", "prompt_cache_breakpoint")  # OpenAI's, with no meaning for videos


def translate_input(body: Mapping[str, Any]) -> dict[str, Any]:
    """Move the options and the place of every media part into its URL, where the connector finds them.

    `{"type": "input_file", "file_id": F, "fps": 2}` is a video, and so are `file_url`, `file_data` (a data URI) and
    `{"type": "input_video", "video_url": U, "fps": 2}`.

    Args:
        body: the JSON body of a request with `input`; not modified.

    Returns:
        The body with another input.

    Raises:
        PartError: an option is unknown, out of range or contradicts another; a part is malformed.
    """
    items = body.get("input")
    if not isinstance(items, list):
        return dict(body)
    return {**body, "input": [_item(item, f"input[{i}]") for i, item in enumerate(items)]}


def _item(item: Any, path: str) -> Any:
    content = item.get("content") if isinstance(item, Mapping) else None
    if not isinstance(content, list):
        return item
    return {**item, "content": [_part(part, f"{path}.content[{i}]") for i, part in enumerate(content)]}


def _part(part: Any, path: str) -> Any:
    if not isinstance(part, Mapping):
        return part
    named = {"uuid": isolation.name_for(part["uuid"])} if isinstance(part.get("uuid"), str) else {}
    kind = part.get("type")
    if kind == "input_image":
        url = part.get("image_url")
        if part.get("file_id") is not None:
            raise PartError("invalid_part", "uploaded files are videos, not images", f"{path}.file_id")
        if not isinstance(url, str) or not url.strip():
            raise PartError("invalid_part", "an input_image part needs an image_url", f"{path}.image_url")
        return {**part, **named, "image_url": attach(url, {}, path)}
    if not isinstance(kind, str) or kind not in _SOURCES:
        return part
    url = _source(part, _SOURCES[kind], path)
    passed_over = (*_PASSED_OVER, *_SOURCES[kind])
    values = {name: value for name, value in part.items() if name not in passed_over}
    try:
        url, written, _ = detach(url)  # a URL that already carries options keeps them, unless the part says otherwise
        options = VideoOptions.from_mapping({**written.to_mapping(), **values})
    except CodecError as error:
        raise PartError("invalid_option", str(error), f"{path}.{error.param}") from error
    return {"type": "input_file", "file_url": attach(url, options.to_mapping(), path), **named}


def _source(part: Mapping[str, Any], names: tuple[str, ...], path: str) -> str:
    """The URL, or the id, of the video."""
    given = [name for name in names if part.get(name) is not None]
    if len(given) != 1:
        raise PartError("invalid_part", f"a video part needs one of {', '.join(names)}", f"{path}.{names[0]}")
    (name,) = given
    value = part[name]
    if not isinstance(value, str) or not value.strip():
        raise PartError("invalid_part", f"{name} must be a text that is not empty", f"{path}.{name}")
    if name == "file_id" and not is_id(value):
        raise PartError("unknown_file", "there is no file with this id", path)
    if name == "file_data" and not value.startswith("data:"):
        raise PartError("invalid_part", "file_data must be a data URI", f"{path}.file_data")
    return value


def to_chat_parts(request: Any) -> None:
    """Make `video_url` parts of a checked request's videos, in place.

    Args:
        request: vLLM's `ResponsesRequest`, made from what `translate_input` returned.
    """
    for item in request.input if isinstance(request.input, list) else ():
        if isinstance(item, dict) and isinstance(item.get("content"), list):
            item["content"] = [_as_video(part) for part in item["content"]]


def _as_video(part: Any) -> Any:
    if not isinstance(part, dict) or part.get("type") != "input_file":
        return part
    named = {"uuid": part["uuid"]} if "uuid" in part else {}
    return {"type": "video_url", "video_url": {"url": part["file_url"]}, **named}


def media_kinds(request: Any) -> set[str]:
    """Kinds of the media parts of a request that `to_chat_parts` has been through."""
    items = request.input if isinstance(request.input, list) else []
    contents = [item.get("content") if isinstance(item, dict) else None for item in items]
    parts = [part for content in contents if isinstance(content, list) for part in content if isinstance(part, dict)]
    return {kind for kind in ("video", "image") for part in parts if f"{kind}_url" in part}
