"""Streams the answers to several questions about one clip at a time: `stream_async.py clip.mp4 QUESTION...`.

The requests run together: whichever comes first has the video decoded, the others share it. Server and key:
OPENAI_BASE_URL and OPENAI_API_KEY.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

import openai

QUESTIONS = ("In which direction is the object moving?", "Is the object growing or shrinking?")


async def ask(client: openai.AsyncOpenAI, model: str, file_id: str, question: str) -> str:
    """One answer, and when its first piece came."""
    video: Any = {"type": "file", "file": {"file_id": file_id}}
    started = time.perf_counter()
    stream = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": [video, {"type": "text", "text": question}]}],
        max_completion_tokens=16,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    words, ttft_s, timings = "", 0.0, {}
    async for chunk in stream:
        for choice in chunk.choices:
            if choice.delta.content:
                ttft_s = ttft_s or time.perf_counter() - started
                words += choice.delta.content  # print it here to see it come
        if chunk.usage:  # the last chunk: what the server says of its own time
            timings = (chunk.usage.model_extra or {})["timings"]
    return f"{question} {words} (first piece after {ttft_s * 1e3:.0f} ms, extract {timings['extract'] * 1e3:.0f} ms)"


async def main(clip: str, *questions: str) -> None:
    """Upload, ask everything at once, delete."""
    async with openai.AsyncOpenAI(
        base_url=os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1"),
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
    ) as client:
        model = (await client.models.list()).data[0].id
        file = await client.files.create(file=Path(clip), purpose="vision")
        try:
            asked = [ask(client, model, file.id, question) for question in questions or QUESTIONS]
            for answer in asyncio.as_completed(asked):
                print(await answer)
        finally:
            await client.files.delete(file.id)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
