"""Videos in the Responses API, with the official client against the real server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from clips import broken_clips, clip
from messages import data_uri, planned_tokens, text, user, video
from serving import Server, metric

MODEL = "cope-tiny"
QUESTION = {"type": "input_text", "text": "What moves?"}
OPTIONS = {"keyframes_per_gop": 2, "start_s": 1, "end_s": 9.5}


def content(*parts: dict[str, Any]) -> Any:
    return [{"role": "user", "content": [*parts, QUESTION]}]


def respond(server: Server, *parts: dict[str, Any], **more: Any) -> Any:
    return server.client.responses.create(
        model=MODEL, input=content(*parts), max_output_tokens=8, temperature=0, **more
    )


@pytest.fixture(scope="module")
def file_id(server: Server) -> Iterator[str]:
    made = server.client.files.create(file=("a.mp4", clip(12)), purpose="vision").id
    yield made
    server.client.files.delete(made)


def test_every_way_to_name_a_video_is_answered_like_a_chat(server: Server, file_id: str) -> None:
    chat = server.client.chat.completions.create(
        model=MODEL,
        messages=user(video(clip(12), **OPTIONS), text("What moves?")),  # type: ignore[arg-type]  # the options are ours
        max_completion_tokens=8,
        temperature=0,
    )
    assert chat.usage is not None
    for part in (
        {"type": "input_file", "file_id": file_id},
        {"type": "input_file", "file_data": data_uri(clip(12)), "filename": "a.mp4"},
        {"type": "input_file", "file_url": data_uri(clip(12))},
        {"type": "input_video", "video_url": data_uri(clip(12))},
        {"type": "input_video", "file_id": file_id},
    ):
        answer = respond(server, {**part, **OPTIONS})
        assert answer.output_text == chat.choices[0].message.content
        assert answer.usage.input_tokens == chat.usage.prompt_tokens
        assert answer.usage.model_extra["video"] == chat.usage.model_extra["video"]  # type: ignore[index]
    account = answer.usage.model_extra["video"]
    assert account["i_tokens"] + account["p_tokens"] == planned_tokens(clip(12), **OPTIONS)


def test_stages_add_up_and_are_counted(server: Server, file_id: str) -> None:
    names = ("cope_e2e_latency_seconds_count", "cope_time_to_first_token_seconds_count")
    before = [metric(server, name) for name in names]
    timings = respond(server, {"type": "input_file", "file_id": file_id}).usage.model_extra["timings"]
    stages = [timings[name] for name in ("receive", "fetch", "extract", "preprocess", "queue", "prefill")]
    assert sum(stages) == pytest.approx(timings["ttft"], rel=0.05, abs=0.002)
    assert timings["ttft"] <= timings["e2e"]
    list(respond(server, {"type": "input_file", "file_id": file_id}, stream=True))
    until = time.monotonic() + 5
    while [metric(server, name) for name in names] != [before[0] + 2, before[1] + 1]:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_stream_ends_with_the_account(server: Server, file_id: str) -> None:
    whole = respond(server, {"type": "input_file", "file_id": file_id, **OPTIONS})
    words, last = "", None
    for event in respond(server, {"type": "input_file", "file_id": file_id, **OPTIONS}, stream=True):
        words += event.delta if event.type == "response.output_text.delta" else ""
        last = event
    assert words == whole.output_text
    assert last.type == "response.completed"  # type: ignore[union-attr]
    usage = last.response.usage  # type: ignore[union-attr]
    assert usage.model_extra["video"] == whole.usage.model_extra["video"]
    assert usage.model_extra["timings"]["prefill"] > 0


def test_text_images_and_turns(server: Server, file_id: str) -> None:
    assert "video" not in (respond(server).usage.model_extra or {})
    turns = [
        *content({"type": "input_file", "file_id": file_id}),
        {"role": "assistant", "content": "A wall."},
        {"role": "user", "content": "<video> Which way?"},  # a word like any other
    ]
    answer = server.client.responses.create(model=MODEL, input=turns, max_output_tokens=4)  # type: ignore[arg-type]
    assert answer.usage is not None
    assert answer.usage.model_extra["video"]["gops"] == 2  # type: ignore[index]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("part", "status", "code", "param"),
    [
        ({"type": "input_file", "file_id": "file-" + "x" * 32}, 404, "unknown_file", ""),
        ({"type": "input_file", "file_id": "file-" + "x" * 32, "fps": 0}, 400, "invalid_option", ".fps"),
        ({"type": "input_video", "video_url": "https://a/b", "speed": 1}, 400, "invalid_option", ".speed"),
        ({"type": "input_file", "file_url": "http://10.0.0.1/a.mp4"}, 400, "url_not_allowed", ""),
        ({"type": "input_file", "file_data": data_uri(broken_clips()["text"])}, 400, "invalid_video", ""),
        ({"type": "input_file", "file_data": data_uri(clip(3)), "start_s": 99}, 400, "no_frames", ".start_s"),
        ({"type": "input_file"}, 400, "invalid_part", ".file_id"),
        ({"type": "input_image", "image_url": data_uri(b"no image", "image/png")}, 400, "invalid_media", ""),
    ],
)
def test_bad_parts_are_refused_by_name(
    server: Server, part: dict[str, Any], status: int, code: str, param: str, stream: bool
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        respond(server, part, stream=stream)
    error = caught.value
    assert (error.status_code, error.code, error.param) == (status, code, f"input[0].content[0]{param}")


def test_a_response_is_rendered_without_being_answered(server: Server, file_id: str) -> None:
    body = {"model": MODEL, "input": content({"type": "input_file", "file_id": file_id}), "mm_payload": "none"}
    answer = httpx.post(f"{server.url}/v1/responses/render", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["token_ids"]) > planned_tokens(clip(12))
