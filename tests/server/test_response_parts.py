from __future__ import annotations

from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
from requirements import require

from cope_model.url_options import detach
from cope_server.parts import PartError
from cope_server.response_parts import media_kinds, to_chat_parts, translate_input

ID = "file-" + "x1_-" * 8
URL = "https://host/a.mp4"
DATA = "data:video/mp4;base64,AAAA"
TEXT = {"type": "input_text", "text": "What moves?"}


def body(*parts: Any) -> dict[str, Any]:
    return {"model": "m", "input": [{"role": "user", "content": list(parts)}]}


def translated(*parts: Any) -> list[Any]:
    content = translate_input(body(*parts))["input"][0]["content"]
    assert isinstance(content, list)
    return content


@pytest.mark.parametrize(
    ("part", "url"),
    [
        ({"type": "input_file", "file_id": ID}, ID),
        ({"type": "input_file", "file_url": URL, "filename": "a.mp4", "detail": "high", "file_id": None}, URL),
        ({"type": "input_file", "file_data": DATA}, DATA),
        ({"type": "input_video", "video_url": URL}, URL),
        ({"type": "input_video", "file_id": ID}, ID),
    ],
)
def test_every_way_to_name_a_video_becomes_a_url_with_options(part: dict[str, Any], url: str) -> None:
    text, made = translated(TEXT, {**part, "fps": 2, "end_s": 9})
    assert text == TEXT
    assert set(made) == {"type", "file_url"}
    plain, options, place = detach(made["file_url"])
    assert (plain, options.to_mapping(), place) == (url, {"fps": 2.0, "end_s": 9.0}, "input[0].content[1]")


def test_the_request_itself_is_not_changed() -> None:
    original = body({"type": "input_file", "file_id": ID, "fps": 2})
    translate_input(original)
    assert original == body({"type": "input_file", "file_id": ID, "fps": 2})


@pytest.mark.parametrize(
    "given",
    [
        {"input": "What moves?"},
        {"input": [{"role": "user", "content": "What moves?"}, {"type": "function_call_output", "output": "9"}]},
        {"input": [5, {"content": [5, {"type": ["input_file"]}, {}]}]},
        {},
    ],
)
def test_everything_else_is_left_to_vllm(given: dict[str, Any]) -> None:
    assert translate_input(given) == given


@pytest.mark.parametrize(
    ("part", "code", "param"),
    [
        ({"type": "input_file", "file_id": ID, "fps": 0}, "invalid_option", ".fps"),
        ({"type": "input_file", "file_id": ID, "speed": 2}, "invalid_option", ".speed"),
        ({"type": "input_video", "video_url": URL, "frames": 8, "fps": 2}, "invalid_option", ".fps"),
        ({"type": "input_file", "file_id": "../../etc/passwd"}, "unknown_file", ""),
        ({"type": "input_file"}, "invalid_part", ".file_id"),
        ({"type": "input_file", "file_id": ID, "file_url": URL}, "invalid_part", ".file_id"),
        ({"type": "input_file", "file_url": {"url": URL}}, "invalid_part", ".file_url"),
        ({"type": "input_file", "file_url": " "}, "invalid_part", ".file_url"),
        ({"type": "input_file", "file_data": "AAAA"}, "invalid_part", ".file_data"),
        ({"type": "input_image", "file_id": ID}, "invalid_part", ".file_id"),
        ({"type": "input_image"}, "invalid_part", ".image_url"),
    ],
)
def test_bad_parts_are_refused_by_name(part: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(PartError) as caught:
        translate_input(body(TEXT, part))
    assert (caught.value.code, caught.value.param) == (code, f"input[0].content[1]{param}")


def test_what_is_translated_passes_vllms_check_and_is_a_video_after_it() -> None:
    require("ENGINE", find_spec("vllm") is not None, "vLLM is not installed (make setup)")
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

    image = {"type": "input_image", "image_url": "https://host/a.png"}
    parts = [{"type": "input_file", "file_id": ID, "uuid": "mine"}, image, TEXT]
    request = ResponsesRequest(**translate_input(body(*parts)))
    to_chat_parts(request)
    video, picture, text = request.input[0]["content"]
    assert (video["type"], video["uuid"], detach(video["video_url"]["url"])[0]) == ("video_url", "mine", ID)
    assert detach(picture["image_url"])[::2] == ("https://host/a.png", "input[0].content[1]")
    assert text["text"] == "What moves?"
    assert media_kinds(request) == {"video", "image"}


def test_a_request_of_words_has_no_media() -> None:
    request = SimpleNamespace(input="What moves?")
    to_chat_parts(request)
    assert (request.input, media_kinds(request)) == ("What moves?", set())
