"""Options on URLs: what goes on comes off, and nothing else."""

from __future__ import annotations

import pytest

from cope_codec.errors import CodecError
from cope_codec.options import VideoOptions
from cope_model import account
from cope_model.url_options import attach, detach, part_of

PART = "messages[0].content[1].video_url"


@pytest.mark.parametrize(
    "url",
    ["https://host/a.mp4?x=1&y=%20", "https://host/a.mp4#t=10", "data:video/mp4;base64,AAAA", "file:///a b.mp4", ""],
)
@pytest.mark.parametrize(
    "options", [{}, {"fps": 2.5, "keyframes_per_gop": 4}, {"frames": 64}, {"mode": "native"}, {"mode": "paper"}]
)
@pytest.mark.parametrize("part", [None, PART])
def test_round_trip(url: str, options: dict[str, object], part: str | None) -> None:
    assert detach(attach(url, options, part)) == (url, VideoOptions.from_mapping(options), part)


def test_written_by_hand() -> None:
    url = "https://host/a.mp4#cope:fps=2&keyframes_per_gop=2&part=messages[0].content[1].video_url"
    assert detach(url) == ("https://host/a.mp4", VideoOptions(fps=2, keyframes_per_gop=2), PART)


def test_urls_without_options_stay() -> None:
    for url in ("https://host/a.mp4", "https://host/a.mp4#t=10", "#x", "a#b#c"):
        assert detach(url) == (url, VideoOptions(), None)


def test_only_the_last_marker_counts() -> None:
    assert detach("https://host/a#cope:fps=3#cope:fps=2") == ("https://host/a#cope:fps=3", VideoOptions(fps=2), None)


def test_none_is_left_out() -> None:
    assert attach("u", {"fps": None, "start_s": 1.5}) == "u#cope:start_s=1.5"


@pytest.mark.parametrize(
    ("query", "param", "message"),
    [
        ("speed=2", "speed", "unknown video option 'speed'"),
        ("fps=fast", "fps", "fps must be a finite number, not 'fast'"),
        ("fps=", "fps", "fps must be a finite number, not ''"),
        ("fps=nan", "fps", "fps must be a finite number"),
        ("fps=1&fps=2", "fps", "given twice"),
        ("frames=8&fps=2", "fps", "which fps does not apply to"),
        ("keyframes_per_gop=9", "keyframes_per_gop", "cannot exceed gop_slots"),
    ],
)
def test_wrong_options_are_named(query: str, param: str, message: str) -> None:
    url = f"https://host/a.mp4#cope:{query}&part={PART}"
    with pytest.raises(CodecError, match=message) as caught:
        detach(url)
    assert (caught.value.code, caught.value.param) == ("invalid_option", param)
    assert part_of(url) == PART


def test_wrong_options_are_not_attached() -> None:
    with pytest.raises(CodecError, match="unknown video option 'speed'"):
        attach("u", {"speed": 2})


def test_account_in_order() -> None:
    names = ["messages[10].content[0].video_url", None, "messages[2].content[10].file", "messages[2].content[9].file"]
    videos = [account.LoadedVideo(plan=None, part=name, fetch_s=0.0, extract_s=0.0) for name in names]  # type: ignore[arg-type]
    assert [video.part for video in account.in_order(videos)] == [names[3], names[2], names[0], None]
