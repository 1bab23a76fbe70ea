from __future__ import annotations

import json
from dataclasses import replace

import pytest
from clips import clip

import cope_codec
from cope_model.account import LoadedVideo
from cope_model.presets import PRESETS
from cope_server.account import plan_account, video_account
from cope_server.chat import add_to_usage
from cope_server.stages import RequestClock


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


@pytest.fixture
def clock() -> RequestClock:
    return RequestClock(started=0.0, received=1.0, account={"gops": 2})


def test_the_usage_block_gains_account_and_times(clock: RequestClock) -> None:
    event = b'data: {"choices":[],"usage":{"prompt_tokens":9}}\n\n'
    changed = add_to_usage(event, clock)
    assert changed.endswith(b"}\n\n")
    usage = json.loads(changed[6:])["usage"]
    assert (usage["prompt_tokens"], usage["video"]) == (9, {"gops": 2})
    assert (usage["timings"]["receive"], usage["timings"]["fetch"]) == (1.0, None)
    assert usage["timings"]["e2e"] > 0
    clock.account = {}
    assert "video" not in json.loads(add_to_usage(event, clock)[6:])["usage"]


def test_a_tool_with_a_property_usage_is_not_taken_for_the_usage_block(clock: RequestClock) -> None:
    tools = [{"parameters": {"properties": {"usage": {"type": "string"}}}}]
    body = json.dumps({"tools": tools, "usage": {"input_tokens": 9}}, separators=(",", ":")).encode()
    changed = json.loads(add_to_usage(body, clock))
    assert changed["tools"] == tools
    assert (changed["usage"]["input_tokens"], changed["usage"]["video"]) == (9, {"gops": 2})


def test_what_has_no_usage_block_passes(clock: RequestClock) -> None:
    said = json.dumps({"choices": [{"message": {"content": 'the key "usage":{"a":1}'}}], "usage": None})
    for other in (b"data: [DONE]\n\n", b": ping\n\n", b'data: {"choices":[],"usage":null}\n\n', said.encode()):
        assert add_to_usage(other, clock) == other
