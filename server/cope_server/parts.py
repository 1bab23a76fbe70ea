"""Message parts as clients write them, turned into what vLLM's chat parser takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cope_codec.errors import CodecError
from cope_codec.options import VideoOptions
from cope_model.url_options import attach, detach


class PartError(ValueError):
    """A message part that cannot be used; `param` is its path in the request."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


def translate_messages(body: Mapping[str, Any]) -> dict[str, Any]:
    """Move the options of every `video_url` part into its URL, where the connector finds them.

    `{"type": "video_url", "video_url": {"url": U, "fps": 2}}` keeps its shape; vLLM only hands on the URL, so the
    options and the part's own path travel in its fragment.

    Args:
        body: the JSON body of a chat completion request; not modified.

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
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, list):
        return message
    return {**message, "content": [_part(part, f"{path}.content[{i}]") for i, part in enumerate(content)]}


def _part(part: Any, path: str) -> Any:
    # vLLM also takes parts without a type; what they hold tells.
    if not isinstance(part, Mapping) or "video_url" not in part or part.get("type", "video_url") != "video_url":
        return part
    path = f"{path}.video_url"
    video = part["video_url"]
    if video is None and part.get("uuid"):
        return part  # vLLM's way to name a video that was sent before
    if isinstance(video, str):
        video = {"url": video}
    if not isinstance(video, Mapping) or not isinstance(video.get("url"), str):
        raise PartError("a video_url part needs a url", f"{path}.url")
    if not video["url"]:
        raise PartError("the url is empty", f"{path}.url")
    values = {name: value for name, value in video.items() if name != "url"}
    try:
        # A URL that already carries options (as with plain `vllm serve`) keeps them, unless the part says otherwise.
        url, written, _ = detach(video["url"])
        options = VideoOptions.from_mapping({**written.to_mapping(), **values})
    except CodecError as error:
        raise PartError(str(error), f"{path}.{error.param}") from error
    return {**part, "type": "video_url", "video_url": {"url": attach(url, options.to_mapping(), path)}}
