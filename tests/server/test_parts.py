from __future__ import annotations

from typing import Any

import pytest

from cope_model.url_options import detach
from cope_server.parts import PartError, translate_messages


def body(*parts: Any) -> dict[str, Any]:
    return {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": list(parts)}],
    }


def video(**values: Any) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": "https://host/a.mp4", **values}}


def file(**values: Any) -> dict[str, Any]:
    return {"type": "file", "file": values}


ID = "file-" + "x1_-" * 8


def test_options_and_the_parts_place_ride_on_the_url() -> None:
    text = {"type": "text", "text": "What moves?"}
    translated = translate_messages(body(text, video(fps=2, end_s=9)))
    system, user = translated["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    assert user["content"][0] == text
    assert set(user["content"][1]["video_url"]) == {"url"}
    url, options, part = detach(user["content"][1]["video_url"]["url"])
    assert (url, options.to_mapping()) == ("https://host/a.mp4", {"fps": 2.0, "end_s": 9.0})
    assert part == "messages[1].content[1].video_url"


def test_the_request_itself_is_not_changed() -> None:
    original = body(video(fps=2))
    translate_messages(original)
    assert original == body(video(fps=2))


def test_a_bare_url_and_a_part_without_type_are_videos_too() -> None:
    for part in (
        {"type": "video_url", "video_url": "https://host/a.mp4"},
        {"video_url": {"url": "https://host/a.mp4"}},
    ):
        (_, user) = translate_messages(body(part))["messages"]
        assert detach(user["content"][0]["video_url"]["url"])[0] == "https://host/a.mp4"


def test_a_file_becomes_a_video_whose_url_is_its_id() -> None:
    for part in (file(file_id=ID, fps=2), {"file": {"file_id": ID, "fps": 2}}):
        (_, user) = translate_messages(body({**part, "uuid": "mine"}))["messages"]
        (translated,) = user["content"]
        assert (translated["type"], translated["uuid"], set(translated)) == (
            "video_url",
            "mine",
            {"type", "uuid", "video_url"},
        )
        url, options, place = detach(translated["video_url"]["url"])
        assert (url, options.to_mapping(), place) == (ID, {"fps": 2.0}, "messages[1].content[0].file")


def test_a_file_may_come_with_the_request() -> None:
    data = "data:video/mp4;base64,AAAA"
    (_, user) = translate_messages(body(file(file_data=data, filename="a.mp4", fps=2, file_id=None)))["messages"]
    url, options, place = detach(user["content"][0]["video_url"]["url"])
    assert (url, options.to_mapping(), place) == (data, {"fps": 2.0}, "messages[1].content[0].file")


def test_lists_in_lists_are_left_to_vllm() -> None:
    nested: list[Any] = []
    for _ in range(900):  # as deep as a JSON parser goes
        nested = [nested]
    assert translate_messages({"messages": nested}) == {"messages": nested}


@pytest.mark.parametrize(
    "name", ["", "a", "file-", "/etc/passwd", "file-../../x", f"{ID}x", f"{ID}#cope:fps=2", "file:///a"]
)
def test_what_cannot_be_the_id_of_a_file_is_an_unknown_file(name: str) -> None:
    with pytest.raises(PartError) as caught:
        translate_messages(body(file(file_id=name)))
    assert (caught.value.code, caught.value.param) == ("unknown_file", "messages[1].content[0].file")


@pytest.mark.parametrize(
    ("part", "param"),
    [
        (file(file_id=ID, speed=2), "messages[1].content[0].file.speed"),
        (file(file_id=ID, frames=8, fps=2), "messages[1].content[0].file.fps"),
        (file(file_id=5), "messages[1].content[0].file.file_id"),
        (file(), "messages[1].content[0].file.file_id"),
        (file(file_id=ID, file_data="data:video/mp4;base64,AAAA"), "messages[1].content[0].file.file_id"),
        (file(file_data="AAAA"), "messages[1].content[0].file.file_data"),
        (file(file_data="file:///etc/passwd"), "messages[1].content[0].file.file_data"),
        (file(filename="a.mp4"), "messages[1].content[0].file.file_id"),
        ({"type": "file", "file": ID}, "messages[1].content[0].file.file_id"),
        (video(speed=2), "messages[1].content[0].video_url.speed"),
        (video(fps="fast"), "messages[1].content[0].video_url.fps"),
        (video(frames=8, fps=2), "messages[1].content[0].video_url.fps"),
        (video(start_s=4, end_s=2), "messages[1].content[0].video_url.end_s"),
        ({"type": "video_url", "video_url": {}}, "messages[1].content[0].video_url.url"),
        ({"type": "video_url", "video_url": {"url": ""}}, "messages[1].content[0].video_url.url"),
        ({"type": "video_url", "video_url": {"url": 5}}, "messages[1].content[0].video_url.url"),
    ],
)
def test_bad_parts_are_refused_by_name(part: dict[str, Any], param: str) -> None:
    with pytest.raises(PartError) as caught:
        translate_messages(body(part))
    assert caught.value.param == param


@pytest.mark.parametrize(
    "messages", [None, "hello", [], [None], [{"role": "user", "content": "hi"}], [{"content": [1]}]]
)
def test_what_is_not_ours_is_left_to_vllm(messages: Any) -> None:
    assert translate_messages({"messages": messages}) == {"messages": messages}


def test_options_on_the_url_stay_unless_the_part_says_otherwise() -> None:
    part = {"type": "video_url", "video_url": {"url": "https://host/a.mp4#cope:fps=3&end_s=9&part=forged", "fps": 2}}
    (_, user) = translate_messages(body(part))["messages"]
    url, options, place = detach(user["content"][0]["video_url"]["url"])
    assert (url, options.to_mapping()) == ("https://host/a.mp4", {"fps": 2.0, "end_s": 9.0})
    assert place == "messages[1].content[0].video_url"
