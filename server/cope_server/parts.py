"""Message parts as clients write them, turned into what vLLM's chat parser takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from cope_codec.errors import CodecError
from cope_codec.options import VideoOptions
from cope_model import isolation
from cope_model.url_options import attach, detach
from cope_server.files.store import is_id

_FILE_SOURCES = ("file_id", "file_data")  # of a file part, as OpenAI's; its filename says nothing

PartErrorCode = Literal["invalid_part", "invalid_option", "unknown_file"]


class PartError(ValueError):
    """A message part that cannot be used.

    Attributes:
        param: its path in the request.
        code: `invalid_part`, `invalid_option` or `unknown_file`.
    """

    def __init__(self, code: PartErrorCode, message: str, param: str) -> None:
        super().__init__(message)
        self.code: PartErrorCode = code
        self.param = param


def translate_messages(body: Mapping[str, Any]) -> dict[str, Any]:
    """Move the options and the place of every media part into its URL, where the connector finds them.

    `{"type": "video_url", "video_url": {"url": U, "fps": 2}}` keeps its shape; vLLM only hands on the URL, so the
    options and the part's own path travel in its fragment. `{"type": "file", "file": {"file_id": F, "fps": 2}}` becomes
    a video whose URL is the id of the file; `file_data` in place of `file_id` is a data URI.

    Args:
        body: the JSON body of a request with `messages` (for batches, a list of them); not modified.

    Returns:
        The body with other messages.

    Raises:
        PartError: an option is unknown, out of range or contradicts another; a part is malformed.
    """
    messages = body.get("messages")
    if not isinstance(messages, list):
        return dict(body)
    return {**body, "messages": [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]}


def _message(message: Any, path: str) -> Any:
    if isinstance(message, list):  # a batch: one conversation of several; lists within it are nobody's
        return [_one_message(entry, f"{path}[{i}]") for i, entry in enumerate(message)]
    return _one_message(message, path)


def _one_message(message: Any, path: str) -> Any:
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, list):
        return message
    return {**message, "content": [_part(part, f"{path}.content[{i}]") for i, part in enumerate(content)]}


def _part(part: Any, path: str) -> Any:
    if not isinstance(part, Mapping):
        return part
    if isinstance(part.get("uuid"), str):
        part = {**part, "uuid": isolation.name_for(part["uuid"])}
    # vLLM also takes parts without a type; what they hold tells.
    for kind in ("video_url", "image_url", "file"):
        if part.get("type", kind) == kind and (kind in part or "type" in part):
            found = f"{path}.{kind}"
            return _file_part(part, found) if kind == "file" else _media_part(part, kind, found)
    return part


def _file_part(part: Mapping[str, Any], path: str) -> Any:
    file = part.get("file")
    values = dict(file) if isinstance(file, Mapping) else {}
    values.pop("filename", None)
    given = {name: source for name in _FILE_SOURCES if (source := values.pop(name, None)) is not None}
    (name, url), *others = given.items() or [("", None)]
    if others or not isinstance(url, str):
        raise PartError("invalid_part", "a file part needs a file_id, or else file_data", f"{path}.file_id")
    if name == "file_id" and not is_id(url):
        raise PartError("unknown_file", "there is no file with this id", path)
    if name == "file_data" and not url.startswith("data:"):
        raise PartError("invalid_part", "file_data must be a data URI", f"{path}.file_data")
    try:
        url = attach(url, VideoOptions.from_mapping(values).to_mapping(), path)
    except CodecError as error:
        raise PartError("invalid_option", str(error), f"{path}.{error.param}") from error
    rest = {name: value for name, value in part.items() if name != "file"}
    return {**rest, "type": "video_url", "video_url": {"url": url}}


def _media_part(part: Mapping[str, Any], kind: str, path: str) -> Any:
    media = part.get(kind)
    if media is None and part.get("uuid"):
        return part  # vLLM's way to name something that was sent before
    if isinstance(media, str):
        media = {"url": media}
    if not isinstance(media, Mapping) or not isinstance(media.get("url"), str):
        raise PartError("invalid_part", f"a {kind} part needs a url", f"{path}.url")
    if not media["url"].strip():
        raise PartError("invalid_part", "the url is empty", f"{path}.url")
    if kind == "image_url":
        url, rest = media["url"], {name: value for name, value in media.items() if name != "url"}
        return {**part, "type": kind, kind: {"url": attach(url, {}, path), **rest}}
    values = {name: value for name, value in media.items() if name != "url"}
    try:
        # A URL that already carries options (as with plain `vllm serve`) keeps them, unless the part says otherwise.
        url, written, _ = detach(media["url"])
        options = VideoOptions.from_mapping({**written.to_mapping(), **values})
    except CodecError as error:
        raise PartError("invalid_option", str(error), f"{path}.{error.param}") from error
    return {**part, "type": kind, kind: {"url": attach(url, options.to_mapping(), path)}}
