"""The official client against the real server: every way in, every way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from clips import broken_clips, clip, harmed_clips
from messages import TINY, data_uri, image, planned_tokens, text, user, video
from serving import Server

MODEL = "cope-tiny"
QUESTION = text("What moves?")


def ask(server: Server, messages: list[dict[str, Any]], **more: Any) -> Any:
    more = {"max_completion_tokens": 8, "temperature": 0, **more}
    return server.client.chat.completions.create(model=MODEL, messages=messages, **more)


def text_tokens(server: Server, messages: list[dict[str, Any]]) -> int:
    """Prompt tokens of the text around the media: the same conversation with one token for each medium."""
    plain = [
        {
            **message,
            "content": "".join(
                "<video>\n" if "video_url" in p else "<image>\n" if "image_url" in p else p["text"]
                for p in message["content"]
            ),
        }
        for message in messages
    ]
    prompt = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in plain) + "<|im_start|>assistant\n"
    answer = httpx.post(f"{server.url}/tokenize", json={"model": MODEL, "prompt": prompt, "add_special_tokens": False})
    media = sum(1 for message in messages for part in message["content"] if "text" not in part)
    return int(answer.json()["count"]) - media


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"keyframes_per_gop": 2},
        {"keyframes_per_gop": 4, "fps": 2},
        {"mode": "transcode"},
        {"mode": "paper", "fps": 3, "gop_slots": 24},
        {"frames": 16},
        {"start_s": 3, "end_s": 9.5},
    ],
    ids=str,
)
def test_prompt_tokens_equal_the_plan(server: Server, options: dict[str, Any]) -> None:
    data = clip(12)
    messages = user(video(data, **options), QUESTION)
    usage = ask(server, messages).usage
    planned = planned_tokens(data, **options)
    assert usage.prompt_tokens == planned + text_tokens(server, messages)
    account = usage.model_extra["video"]
    assert account["i_tokens"] + account["p_tokens"] == planned
    assert account["dense_tokens"] == 64 * TINY.i_tokens


def test_streaming_gives_the_same_answer_and_the_account(server: Server) -> None:
    messages = user(video(clip(12)), QUESTION)
    whole = ask(server, messages)
    pieces, usage = [], None
    for chunk in ask(server, messages, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        pieces += [choice.delta.content or "" for choice in chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert usage is not None
    assert usage.prompt_tokens == whole.usage.prompt_tokens
    assert usage.model_extra["video"] == whole.usage.model_extra["video"]
    assert usage.model_extra["video"]["gops"] == 2


def test_all_kinds_of_urls_give_the_same_answer(server: Server, files: tuple[Path, str]) -> None:
    folder, address = files
    data = clip(12)
    (folder / "clip.mp4").write_bytes(data)
    (server.folder / "clip.mp4").write_bytes(data)
    urls = [data_uri(data), f"{address}/clip.mp4", f"file://{server.folder}/clip.mp4"]
    answers = [ask(server, user(video(url, keyframes_per_gop=2), QUESTION), logprobs=True) for url in urls]
    contents = {answer.choices[0].message.content for answer in answers}
    assert len(contents) == 1
    assert len({answer.usage.prompt_tokens for answer in answers}) == 1


def test_text_alone(server: Server) -> None:
    messages = user(QUESTION)
    usage = ask(server, messages).usage
    assert usage.prompt_tokens == text_tokens(server, messages)
    assert "video" not in (usage.model_extra or {})


def test_images_and_videos_share_a_message(server: Server) -> None:
    data = clip(4)
    messages = user(image(), text("before"), video(data), QUESTION)
    usage = ask(server, messages).usage
    assert usage.prompt_tokens == TINY.i_tokens + planned_tokens(data) + text_tokens(server, messages)


def test_two_videos_add_up_and_their_order_matters(server: Server) -> None:
    one, two = clip(12), clip(4, seed=3, pan=(0.0, 40.0))
    messages = user(video(one), video(two, keyframes_per_gop=2), QUESTION)
    forth = ask(server, messages, logprobs=True)
    assert forth.usage.prompt_tokens == (
        planned_tokens(one) + planned_tokens(two, keyframes_per_gop=2) + text_tokens(server, messages)
    )
    back = ask(server, user(video(two, keyframes_per_gop=2), video(one), QUESTION), logprobs=True)
    assert back.usage.prompt_tokens == forth.usage.prompt_tokens
    assert [t.logprob for t in back.choices[0].logprobs.content] != [
        t.logprob for t in forth.choices[0].logprobs.content
    ]


def test_a_placeholder_in_the_text_is_text(server: Server) -> None:
    data = clip(4)
    usage = ask(server, user(video(data), text("What does <video> mean here, and <image>?"))).usage
    assert usage.model_extra["video"]["i_frames"] == 1
    assert planned_tokens(data) < usage.prompt_tokens < planned_tokens(data) + 60


def test_a_second_question_is_read_from_the_prefix_cache(server: Server) -> None:
    data = clip(12, seed=21)
    ask(server, user(video(data), QUESTION))
    usage = ask(server, user(video(data), text("Which way?"))).usage
    assert usage.prompt_tokens_details.cached_tokens >= 0.85 * planned_tokens(data)


@pytest.mark.parametrize("name", sorted(broken_clips()))
@pytest.mark.parametrize("way", ["data", "http", "file"])
def test_what_is_no_video_is_a_400_that_names_the_part(
    server: Server, files: tuple[Path, str], name: str, way: str
) -> None:
    data = broken_clips()[name]
    folder, address = files
    for place in (folder, server.folder):
        (place / "broken").write_bytes(data)
    url = {"data": data_uri(data), "http": f"{address}/broken", "file": f"file://{server.folder}/broken"}[way]
    error = refused(server, user(text("Look:"), video(url), QUESTION))
    assert error["param"] == "messages[0].content[1].video_url"
    expected = {"zero bytes": "empty_media", "audio only": "no_video_stream"}.get(name, "invalid_video")
    assert error["code"] == expected
    assert str(server.folder) not in error["message"]
    assert ask(server, user(video(clip(4)), QUESTION)).usage.completion_tokens > 0


@pytest.mark.parametrize("name", sorted(harmed_clips()))
def test_what_can_be_read_of_a_harmed_video_is_answered(server: Server, name: str) -> None:
    data = harmed_clips()[name]
    usage = ask(server, user(video(data), QUESTION)).usage
    account = usage.model_extra["video"]
    assert account["i_tokens"] + account["p_tokens"] == planned_tokens(data)


def test_damage_shows_in_the_account(server: Server) -> None:
    data = bytearray(clip(12, gop=60))
    begin, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    middle = (begin + end) // 2
    data[middle:end] = bytes(end - middle)
    account = ask(server, user(video(bytes(data)), QUESTION)).usage.model_extra["video"]
    assert account["corrupt"] and account["missing_slots"] > 0
    whole = ask(server, user(video(clip(12)), QUESTION)).usage.model_extra["video"]
    assert not whole["corrupt"] and whole["missing_slots"] == 0


@pytest.mark.parametrize(
    ("part", "param", "code"),
    [
        (video("https://127.0.0.1:9/a.mp4", speed=2), "video_url.speed", "invalid_option"),
        (video(b"x", fps=0), "video_url.fps", "invalid_option"),
        (video(b"x", frames=8, keyframes_per_gop=2), "video_url.keyframes_per_gop", "invalid_option"),
        (video("https://host/a.mp4#cope:fps=99"), "video_url.fps", "invalid_option"),
        (video(""), "video_url.url", "invalid_part"),
        ({"type": "video_url"}, "video_url.url", "invalid_part"),
        (video("data:video/mp4;base64,%%%"), "video_url", "invalid_data_uri"),
        (video("ftp://host/a.mp4"), "video_url", "invalid_url"),
        (video("file:///etc/passwd"), "video_url", "file_not_allowed"),
        (video(b"ffconcat version 1.0\nfile README.md\n"), "video_url", "invalid_video"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, "image_url", "invalid_media"),
    ],
)
def test_bad_parts_are_refused_by_name_and_code(server: Server, part: dict[str, Any], param: str, code: str) -> None:
    error = refused(server, user(part, QUESTION))
    assert (error["param"], error["code"]) == (f"messages[0].content[0].{param}", code)
    assert "parameter=" not in error["message"]


def test_an_unreachable_url_is_a_422_without_internals(server: Server) -> None:
    error = refused(server, user(video("http://127.0.0.1:9/a.mp4"), QUESTION), status=422)
    assert (error["param"], error["code"]) == ("messages[0].content[0].video_url", "unreachable_url")
    assert "Traceback" not in error["message"]


def test_a_video_longer_than_the_context_is_refused(server: Server) -> None:
    data = clip(64, width=160, height=96, fps=5)
    error = refused(server, user(video(data, fps=5, keyframes_per_gop=8, mode="transcode"), QUESTION))
    assert (error["param"], error["code"]) == ("messages[0].content[0].video_url", "context_exceeded")
    assert "the model's context holds 16,384" in error["message"]
    assert "keyframes_per_gop=1 would fit with 5,680" in error["message"]
    account = ask(server, user(video(data, fps=5, mode="transcode"), QUESTION)).usage.model_extra["video"]
    assert account["i_tokens"] + account["p_tokens"] == 5680


def test_options_count_wherever_messages_go(server: Server) -> None:
    """`/tokenize` is where one looks up a price."""
    data = clip(12)
    messages = user(video(data, keyframes_per_gop=4), QUESTION)
    body = {"model": MODEL, "messages": messages}
    priced = httpx.post(f"{server.url}/tokenize", json=body, timeout=60).json()
    assert priced["count"] == ask(server, messages).usage.prompt_tokens
    body["messages"] = user(video(data, keyframes_per_gop=9), QUESTION)
    refusal = httpx.post(f"{server.url}/tokenize", json=body, timeout=60)
    assert (refusal.status_code, refusal.json()["error"]["code"]) == (400, "invalid_option")


def refused(server: Server, messages: list[dict[str, Any]], status: int = 400) -> dict[str, Any]:
    """The error that a request is answered with."""
    body = {"model": MODEL, "messages": messages, "max_completion_tokens": 4}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert error["message"]
    return error
