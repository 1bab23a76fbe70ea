"""Video options that ride on a URL: `https://host/a.mp4#cope:fps=2&part=messages[0].content[1].video_url`.

vLLM hands a connector the URL of a part and nothing else, so the options of that part, and its place in the request,
travel in the URL's fragment. A fragment is never sent to a server. Data URIs take one too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode

from cope_codec.errors import CodecError
from cope_codec.options import VideoOptions

MARKER = "#cope:"
PART = "part"  # reserved name: where in the request the URL stood


def attach(url: str, options: Mapping[str, Any], part: str | None = None) -> str:
    """Put options on a URL.

    Args:
        url: any URL; a fragment of its own stays.
        options: names and values as `VideoOptions.from_mapping` takes them; None values are left out.
        part: path of the part in the request, e.g. `messages[0].content[1].video_url`.

    Raises:
        CodecError: `invalid_option`, for options that `VideoOptions` refuses.
    """
    given = {name: value for name, value in options.items() if value is not None}
    VideoOptions.from_mapping(given)
    query = dict(given)
    if part is not None:
        query[PART] = part
    return url + MARKER + urlencode(query)


def detach(url: str) -> tuple[str, VideoOptions, str | None]:
    """Take the options off a URL again.

    Returns:
        The URL as it was before `attach`, the options (the defaults where there were none), the part.

    Raises:
        CodecError: `invalid_option`, for a name that is unknown, given twice, or a value that `VideoOptions` refuses.
    """
    plain, query = _split(url)
    values: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name in values:
            raise CodecError("invalid_option", f"video option {name!r} is given twice", param=name)
        values[name] = text if name == PART else _value(text)
    part = values.pop(PART, None)
    return plain, VideoOptions.from_mapping(values), part


def part_of(url: str) -> str | None:
    """The part that a URL names, even if its options are wrong."""
    return dict(parse_qsl(_split(url)[1])).get(PART)


def _split(url: str) -> tuple[str, str]:
    """The URL before the last marker, and the query behind it."""
    # A data URI can be tens of megabytes without a single '#', which a search for one character passes at once.
    at = url.rfind("#")
    while at >= 0 and not url.startswith(MARKER, at):
        at = url.rfind("#", 0, at)
    return (url, "") if at < 0 else (url[:at], url[at + len(MARKER) :])


def _value(text: str) -> int | float | str:
    """A number where the text is one: queries have no types."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
