"""Sends streaming chat requests in a closed loop and keeps what the load test's client knows of them."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import httpx

from cope_loadtest.client import Body, Patience, send
from cope_loadtest.records import Record
from cope_server.client import ServerError

_PATIENCE = Patience()
_WORDS = (
    "camera street water light house moving person table yellow slowly garden window river behind music bright".split()
)


def question(seed: str, words: int = 12) -> str:
    """A short question that no cache knows, always the same for the same seed."""
    chosen = random.Random(seed).choices(_WORDS, k=words)  # noqa: S311 - words to read, no secret
    return f"{seed}: {' '.join(chosen)}?"


def body(model: str, text: str, tokens: int, part: Mapping[str, Any] | None = None) -> Body:
    """A streaming request for exactly so many tokens.

    Args:
        model: name at the server.
        text: the question.
        tokens: length of the answer.
        part: what stands before the question.
    """
    content = [*([] if part is None else [dict(part)]), {"type": "text", "text": text}]
    request = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_completion_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return Body([json.dumps(request, separators=(",", ":")).encode()])


async def ask(client: httpx.AsyncClient, bodies: Sequence[Body], users: int = 1) -> list[Record]:
    """Send all requests, so many at a time; the records are in the order of the requests.

    Args:
        client: of `cope_loadtest.client.make_client`.
        bodies: of the requests.
        users: each of whom sends the next request as soon as the last one is answered.

    Raises:
        ServerError: a request failed; figures without it would not be comparable.
    """
    records = [Record(0, number, "measured", "", None, 0.0) for number in range(len(bodies))]
    waiting = iter(zip(records, bodies, strict=True))
    await asyncio.gather(*(_one_user(client, waiting) for _ in range(users)))
    return records


async def _one_user(client: httpx.AsyncClient, waiting: Iterable[tuple[Record, Body]]) -> None:
    for record, content in waiting:
        record.scheduled = time.perf_counter()
        await send(client, content, record, _PATIENCE)
        if not record.ok:
            raise ServerError(f"{client.base_url}: a request ended as {record.outcome}: {record.detail}")


def ttft_s(record: Record) -> float:
    """From the request's first byte to the first chunk with content, seconds."""
    assert record.ttft_sent_s is not None, "the request has been answered"
    return record.ttft_sent_s


def e2el_s(record: Record) -> float:
    """From the request's first byte to the end of the answer, seconds."""
    assert record.sent is not None and record.last is not None, "the request has been answered"
    return record.last - record.sent
