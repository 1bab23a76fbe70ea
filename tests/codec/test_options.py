from __future__ import annotations

import pickle
from typing import Any

import pytest

from cope_codec import CodecError, VideoOptions
from cope_codec.options import MODES, json_schema


def test_defaults_are_the_papers() -> None:
    options = VideoOptions()
    assert (options.fps, options.gop_slots, options.keyframes_per_gop, options.max_gops) == (1.0, 8, 1, 64)


@pytest.mark.parametrize(
    ("values", "param"),
    [
        ({"fps": 0}, "fps"),
        ({"fps": float("nan")}, "fps"),
        ({"fps": "fast"}, "fps"),
        ({"fps": 10**400}, "fps"),
        ({"start_s": 10**400}, "start_s"),
        ({"keyframes_per_gop": 9}, "keyframes_per_gop"),
        ({"keyframes_per_gop": 1.5}, "keyframes_per_gop"),
        ({"keyframes_per_gop": True}, "keyframes_per_gop"),
        ({"gop_slots": 65}, "gop_slots"),
        ({"start_s": -1}, "start_s"),
        ({"start_s": 5, "end_s": 5}, "end_s"),
        ({"mode": "fast"}, "mode"),
        ({"mode": ["native"]}, "mode"),
        ({"frames": 64, "fps": 2}, "fps"),
        ({"frames": 64, "mode": "native"}, "mode"),
        ({"frames": 0}, "frames"),
        ({"speed": 3}, "speed"),
        ({"speed": None}, "speed"),
    ],
)
def test_bad_values_are_refused_by_name(values: dict[str, Any], param: str) -> None:
    with pytest.raises(CodecError) as caught:
        VideoOptions.from_mapping(values)
    assert caught.value.code == "invalid_option"
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("keyframes", "slots", "positions"),
    [
        (1, 8, (0,)),
        (2, 8, (0, 4)),
        (4, 8, (0, 2, 4, 6)),
        (8, 8, tuple(range(8))),
        (3, 8, (0, 2, 5)),
        (6, 12, (0, 2, 4, 6, 8, 10)),
    ],
)
def test_keyframes_are_spread_evenly(keyframes: int, slots: int, positions: tuple[int, ...]) -> None:
    assert VideoOptions(keyframes_per_gop=keyframes, gop_slots=slots).keyframe_slots() == positions


def test_null_is_the_default() -> None:
    given = dict.fromkeys(VideoOptions().__slots__)
    assert VideoOptions.from_mapping({**given, "keyframes_per_gop": 2}) == VideoOptions(keyframes_per_gop=2)


def test_mapping_round_trip_holds_only_what_was_given() -> None:
    values = {"fps": 2.0, "end_s": 9.5, "mode": "transcode"}
    assert VideoOptions.from_mapping(values).to_mapping() == values
    assert VideoOptions().to_mapping() == {}
    assert VideoOptions(fps=2) == VideoOptions(fps=2.0)


def test_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(CodecError("invalid_option", "fps is wrong", param="fps")))
    assert (error.code, error.param, str(error)) == ("invalid_option", "fps", "fps is wrong")


def test_the_schema_says_what_each_option_takes() -> None:
    schema = json_schema()
    properties = schema["properties"]
    assert not schema["additionalProperties"]
    assert properties["fps"] == {"type": "number", "minimum": 0.01, "maximum": 60.0, "default": 1.0}
    assert properties["start_s"] == {"type": "number", "minimum": 0.0}
    assert properties["mode"] == {"type": "string", "enum": list(MODES), "default": "auto"}
    for name, told in properties.items():
        for bound in ("minimum", "maximum", "default"):
            if bound in told and name != "keyframes_per_gop":  # whose bound is gop_slots, too
                VideoOptions.from_mapping({name: told[bound]})
