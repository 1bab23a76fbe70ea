from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from cope_server.stages import STAGES, RequestClock, length, stage_times, timings, union


def video(started: float, fetch_s: float, extract_s: float, mode: str = "native", cached: bool = False) -> Any:
    plan = SimpleNamespace(mode=mode)
    return SimpleNamespace(started=started, fetch_s=fetch_s, extract_s=extract_s, plan=plan, cached=cached)


def clock(*videos: Any, **more: Any) -> RequestClock:
    """The body is there at 1, the engine is asked at 10, its first token comes at 14 and is sent at 15."""
    times = {"received": 1.0, "handed_over": 10.0, "first_output": 14.0, "prefill_s": 3.0, "first_token": 15.0, **more}
    return RequestClock(started=0.0, videos=videos, **times)


@pytest.mark.parametrize(
    ("videos", "fetch", "extract"),
    [
        ([], 0, 0),
        ([video(2, 2, 3)], 2, 3),
        ([video(2, 2, 3), video(2, 2, 3)], 2, 3),  # side by side
        ([video(2, 1, 3), video(2, 3, 4)], 1, 6),  # the second is fetched while the first is extracted
        ([video(2, 1, 1), video(6, 1, 1)], 2, 2),  # one after the other
        ([video(2, 6, 0), video(3, 1, 1)], 5, 1),
        ([video(0, 3, 1)], 2, 1),  # not before the body was there
        ([video(8, 1, 5)], 1, 1),  # not after the hand-over
    ],
)
def test_no_instant_counts_twice_and_the_sum_is_ttft(videos: list[Any], fetch: float, extract: float) -> None:
    times = stage_times(clock(*videos))
    assert (times["fetch"], times["extract"]) == (fetch, extract)
    assert (times["receive"], times["queue"], times["prefill"]) == (1, 1, 4)
    assert times["preprocess"] == 9 - fetch - extract
    assert sum(seconds for seconds in times.values() if seconds is not None) == 15


def test_without_the_engines_statistics_prefill_holds_the_queue() -> None:
    times = stage_times(clock(prefill_s=None))
    assert (times["queue"], times["prefill"]) == (None, 5)


def test_an_engine_that_claims_too_much_cannot_break_the_sum() -> None:
    times = stage_times(clock(prefill_s=60.0))
    assert (times["queue"], times["prefill"]) == (0, 5)


def test_an_answer_in_one_piece_counts_to_the_token_that_the_server_had() -> None:
    whole = clock(first_token=None)
    assert (whole.ttft_s, stage_times(whole)["prefill"]) == (14, 3)


@pytest.mark.parametrize(
    ("lacking", "known"),
    [
        (("received", "handed_over", "first_output", "first_token"), []),
        (("handed_over", "first_output", "first_token"), ["receive"]),
        (("first_output", "first_token"), ["receive", "fetch", "extract", "preprocess"]),
    ],
)
def test_stages_that_were_not_reached_have_no_time(lacking: tuple[str, ...], known: list[str]) -> None:
    times = stage_times(clock(video(2, 1, 1), **dict.fromkeys(lacking)))
    assert list(times) == list(STAGES)
    assert [stage for stage, seconds in times.items() if seconds is not None] == known


def test_timings_are_stages_ttft_and_e2e() -> None:
    found = timings(clock(video(2, 1 / 3, 1)), now=20.0)
    assert list(found) == [*STAGES, "ttft", "e2e"]
    assert (found["ttft"], found["e2e"], found["fetch"]) == (15, 20, 0.333333)


def test_intervals_are_joined() -> None:
    assert union([(3, 4), (0, 1), (1, 2), (0.5, 1.5)]) == [(0, 2), (3, 4)]
    assert length([(0, 2), (1, 3), (5, 6)]) == 4


@pytest.mark.parametrize(
    ("videos", "media", "labels"),
    [
        ([], set(), ("text", "none")),
        ([], {"image"}, ("image", "none")),
        ([video(0, 0, 0)], {"video", "image"}, ("codec", "cold")),
        ([video(0, 0, 0, cached=True)], {"video"}, ("codec", "warm")),
        ([video(0, 0, 0, cached=True), video(0, 0, 0)], {"video"}, ("codec", "cold")),
        ([video(0, 0, 0, "dense", True)], {"video"}, ("dense", "warm")),
        ([video(0, 0, 0, "dense"), video(0, 0, 0)], {"video"}, ("codec", "cold")),
        ([], {"video"}, ("codec", "warm")),  # named by its uuid
    ],
)
def test_labels(videos: list[Any], media: set[str], labels: tuple[str, str]) -> None:
    seen = RequestClock(started=0.0, handed_over=time.perf_counter())
    seen.saw(videos, media)
    assert (seen.input, seen.cache) == labels


def test_a_refused_video_was_not_in_the_cache() -> None:
    refused = RequestClock(started=0.0)
    refused.saw([], {"video"})
    assert (refused.input, refused.cache) == ("codec", "cold")
