"""Asks about a clip with the official client, and prints what the video cost: `ask_openai.py clip.mp4 ["QUESTION"]`.

The video options stand beside the URL. A clip as short as this may go inside the request; upload larger ones, as in
`conversation.py`. Server and key: OPENAI_BASE_URL and OPENAI_API_KEY.
"""

from __future__ import annotations

import base64
import os
import sys
from pathlib import Path
from typing import Any

import openai


def main(clip: str, question: str = "In which direction is the object moving?") -> None:
    """Ask once, without streaming."""
    client = openai.OpenAI(
        base_url=os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1"),
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
    )
    url = "data:video/mp4;base64," + base64.b64encode(Path(clip).read_bytes()).decode()
    video: Any = {"type": "video_url", "video_url": {"url": url, "fps": 1, "keyframes_per_gop": 2}}
    try:
        answer = client.chat.completions.create(
            model=client.models.list().data[0].id,
            messages=[{"role": "user", "content": [video, {"type": "text", "text": question}]}],
            max_completion_tokens=16,
            temperature=0,
        )
    except openai.BadRequestError as error:  # a bad option or video: `param` is its place, `code` stays the same
        sys.exit(f"{error.param}: {error.message} [{error.code}]")
    print(answer.choices[0].message.content)
    assert answer.usage is not None
    account = (answer.usage.model_extra or {})["video"]
    print(f"{account['i_tokens']} tokens of pictures, {account['p_tokens']} of motion and residuals", end="; ")
    print(f"dense frames would be {account['dense_tokens']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
