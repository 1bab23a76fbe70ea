"""The bodies of requests: JSON around a clip's address, whose bytes all requests for the clip share."""

from __future__ import annotations

import json
import random
from typing import Any

from cope_loadtest.client import Body
from cope_loadtest.scenario import RequestSpec

MARK = "@clip@"  # stands for a clip's address that is put in later
# Short common words; their number is about that of their tokens.
_WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work number night point home water room mother area money "
    "story fact month lot right study book eye job word business issue side kind head house service friend father"
).split()


def video_body(model: str, request: RequestSpec, part: dict[str, Any], address: bytes | None, index: int) -> Body:
    """A question about a clip.

    Args:
        model: name at the server.
        request: its kind.
        part: the message part that names the clip, without the options.
        address: bytes of the clip's URL that take the place of `MARK` in it; None if the part is complete.
        index: of the clip; it chooses the question.
    """
    (kind,) = (name for name in part if name != "type")
    part = {**part, kind: {**part[kind], **request.options}}
    question = request.questions[index % len(request.questions)]
    text = _request(model, request, [part, {"type": "text", "text": question}])
    if address is None:
        return Body([text])
    before, _, after = text.partition(MARK.encode())
    return Body([before, address, after])


def text_body(model: str, request: RequestSpec, seed: str, index: int) -> Body:
    """A question without a clip, after random words that no cache can know."""
    chosen = random.Random(f"{seed} {index}")  # noqa: S311 - words to read, no secret
    words = " ".join(chosen.choices(_WORDS, k=request.prompt_words))
    question = request.questions[index % len(request.questions)]
    return Body([_request(model, request, [{"type": "text", "text": f"{words}\n{question}" if words else question}])])


def _request(model: str, request: RequestSpec, content: list[dict[str, Any]]) -> bytes:
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_completion_tokens": request.max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if request.ignore_eos:
        body["ignore_eos"] = True
    return json.dumps(body, separators=(",", ":")).encode()
