"""The server computes what the plain PyTorch model computes: same tokens, same log probabilities."""

from __future__ import annotations

from typing import Any

import pytest
from clips import clip
from messages import TINY, image, picture, text, user, video
from serving import Server

import cope_codec

CLIP, OTHER = clip(12), clip(20, seed=3, pan=(0.0, 40.0), fps=8)
TOKENS = 12


@pytest.fixture(scope="module")
def reference(server: Server) -> Any:
    from cope_model.reference import Reference
    from cope_model.tiny import bundled_model

    return Reference.load(bundled_model())


def local(data: bytes, **options: Any) -> dict[str, Any]:
    return {"type": "video", "video": list(cope_codec.open(data, **options).gops(TINY.side))}


CASES = {
    "one video": [(CLIP, {})],
    "three GOPs": [(OTHER, {})],
    "one GOP": [(CLIP, {"end_s": 5.0})],
    "four keyframes per GOP": [(CLIP, {"keyframes_per_gop": 4})],
    "two videos": [(CLIP, {}), (OTHER, {"keyframes_per_gop": 2})],
    "transcoded": [(CLIP, {"mode": "transcode"})],
    "dense": [(CLIP, {"frames": 20})],
}


def compare(server: Server, reference: Any, ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    answer = server.client.chat.completions.create(
        model="cope-tiny",
        messages=ours,
        max_completion_tokens=TOKENS,
        temperature=0,
        logprobs=True,
        extra_body={"return_token_ids": True},
    )
    expected = reference.generate(theirs, TOKENS)
    choice = answer.choices[0]
    assert answer.usage.prompt_tokens == len(expected.prompt_token_ids)
    assert choice.model_extra["token_ids"] == expected.token_ids
    found = [token.logprob for token in choice.logprobs.content]
    assert found == pytest.approx(expected.logprobs[: len(found)], abs=1e-4)
    assert len(found) >= min(TOKENS, len(expected.token_ids)) - 1


@pytest.mark.parametrize("name", CASES)
def test_the_server_equals_the_reference(server: Server, reference: Any, name: str) -> None:
    """Prompts are longer than the server's chunk of 256 tokens, so chunked prefill is part of it."""
    question = text("What moves, and which way?")
    ours = user(*(video(data, **options) for data, options in CASES[name]), question)
    theirs = user(*(local(data, **options) for data, options in CASES[name]), question)
    compare(server, reference, ours, theirs)


def test_text_alone_equals_the_reference(server: Server, reference: Any) -> None:
    compare(server, reference, user(text("Hello")), user(text("Hello")))


def test_image_and_video_equal_the_reference(server: Server, reference: Any) -> None:
    ours = user(image(5), text("and"), video(CLIP), text("?"))
    theirs = user({"type": "image", "image": picture(5)}, text("and"), local(CLIP), text("?"))
    compare(server, reference, ours, theirs)


def test_answers_depend_on_the_video(server: Server, reference: Any) -> None:
    """Without this, equality with the reference could mean that neither looks."""
    question = text("What moves?")
    answers = [reference.generate(user(local(data), question), 4).logprobs for data in (CLIP, OTHER)]
    assert abs(answers[0][0] - answers[1][0]) > 1e-3
