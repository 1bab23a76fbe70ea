"""Writes docs/errors.md: the codes, their HTTP statuses and meanings, as the code has them; needs vLLM installed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cope_codec import errors as codec_errors
from cope_model import media_errors
from cope_server.errors import REQUEST_MEANINGS, http_status
from cope_server.files import errors as file_errors

PAGE = Path(__file__).resolve().parent.parent / "docs" / "errors.md"
_HEAD = """# Error codes

Written by `python scripts/write_errors_page.py`; change the code, not this page.

A request that is refused because of a media part or a file is answered in OpenAI's shape: `error.code` is one of
these, `error.param` names the part or the field, and for `invalid_option` the option. Codes stay the same from version
to version; messages do not. What is answered with 429 or 503 carries `Retry-After`: with 429 the time that the waiting
videos will take at the pace of the last minute, 1 to 60 seconds. Errors that no part is at fault for are vLLM's own.
"""
_TABLE = """
## {heading}

| code | HTTP status | meaning |
|---|---|---|
"""


def page() -> str:
    """The whole page."""
    tables: dict[str, Mapping[Any, str]] = {
        "The video, or an option (also `cope_codec.CodecError.code`)": codec_errors.MEANINGS,
        "The part, or how to get its bytes": media_errors.MEANINGS,
        "The request": REQUEST_MEANINGS,
        "An upload (`/v1/files`)": file_errors.MEANINGS,
    }
    text = _HEAD
    for heading, meanings in tables.items():
        text += _TABLE.format(heading=heading)
        for code, meaning in meanings.items():
            text += f"| `{code}` | {http_status(code).value} | {meaning} |\n"
    return text


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"wrote {PAGE}")
