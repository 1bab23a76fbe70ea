from __future__ import annotations

import json
from dataclasses import replace

import pytest
from clips import clip

import cope_codec
from cope_model.account import LoadedVideo
from cope_model.presets import PRESETS
from cope_server.account import plan_account, video_account
from cope_server.chat import add_to_event


@pytest.mark.parametrize(("keyframes", "tokens"), [(1, 2240), (2, 3840), (4, 7040)])
def test_a_64_second_clip_costs_what_the_paper_says(keyframes: int, tokens: int) -> None:
    plan = cope_codec.open(clip(64, width=160, height=96, fps=5), keyframes_per_gop=keyframes).plan
    account = plan_account([plan], PRESETS["7b"].geometry)
    assert account["i_tokens"] + account["p_tokens"] == tokens
    assert account["dense_tokens"] == 13_440
    assert (account["seconds"], account["gops"], account["mode"]) == (64.0, 8, "native")


def test_videos_add_up() -> None:
    one = cope_codec.open(clip(12)).plan
    two = cope_codec.open(clip(4), mode="transcode").plan
    account = plan_account([one, two], PRESETS["tiny"].geometry)
    assert (account["seconds"], account["gops"], account["i_frames"], account["p_frames"]) == (16.0, 3, 3, 13)
    assert account["mode"] == "mixed"


def test_what_is_not_whole_is_told() -> None:
    plan = cope_codec.open(clip(4)).plan
    whole = LoadedVideo(plan=plan, part=None, fetch_s=0.0, extract_s=0.0)
    account = video_account([whole, replace(whole, missing_slots=2, corrupt=True)], PRESETS["tiny"].geometry)
    assert (account["missing_slots"], account["corrupt"], account["truncated"]) == (2, True, False)
    account = video_account([replace(whole, truncated=True), whole], PRESETS["tiny"].geometry)
    assert (account["missing_slots"], account["corrupt"], account["truncated"]) == (0, False, True)


def test_usage_chunks_gain_the_account_and_others_pass() -> None:
    event = b'data: {"choices":[],"usage":{"prompt_tokens":9}}\n\n'
    changed = add_to_event(event, {"gops": 2})
    assert json.loads(changed[6:]) == {"choices": [], "usage": {"prompt_tokens": 9, "video": {"gops": 2}}}
    assert changed.endswith(b"\n\n")
    for other in (b"data: [DONE]\n\n", b": ping\n\n", b'data: {"choices":[],"usage":null}\n\n'):
        assert add_to_event(other, {"gops": 2}).replace(b" ", b"") == other.replace(b" ", b"")
