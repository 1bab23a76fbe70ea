"""A conversation about one uploaded clip: `conversation.py clip.mp4 QUESTION...`.

Each turn sends the whole conversation again, as OpenAI's API wants it, but the video is an id in its first message: it
is not sent, fetched or decoded again, and its tokens come from the prefix cache. `prefetch` has the model read it while
the first question is still being typed. Server and key: OPENAI_BASE_URL and OPENAI_API_KEY.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import openai

QUESTIONS = ("In which direction is the object moving?", "Is it growing or shrinking?", "Does the camera move?")


def main(clip: str, *questions: str) -> None:
    """Upload, ask one question after the other, delete."""
    client = openai.OpenAI(
        base_url=os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1"),
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
    )
    model = client.models.list().data[0].id
    file = client.files.create(
        file=Path(clip),
        purpose="vision",
        expires_after={"anchor": "created_at", "seconds": 3600},  # should this script not come to its end
        extra_body={"prefetch": "prefill"},
    )
    content: list[Any] = [{"type": "file", "file": {"file_id": file.id}}]
    messages: list[Any] = [{"role": "user", "content": content}]
    try:
        for question in questions or QUESTIONS:
            content.append({"type": "text", "text": question})
            answer = client.chat.completions.create(
                model=model, messages=messages, max_completion_tokens=16, temperature=0
            )
            words, usage = answer.choices[0].message.content, answer.usage
            assert usage is not None
            details = usage.prompt_tokens_details
            cached = (details.cached_tokens if details else 0) or 0
            print(f"{question} {words} ({cached} of {usage.prompt_tokens} prompt tokens were cached)")
            content = []
            messages += [{"role": "assistant", "content": words}, {"role": "user", "content": content}]
    finally:
        client.files.delete(file.id)


if __name__ == "__main__":
    main(*sys.argv[1:])
