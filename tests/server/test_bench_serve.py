"""The arithmetic of `cope bench serve`, and its clients against small servers with known times."""

from __future__ import annotations

import asyncio
import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_chat import Request, serving, streaming
from requirements import require
from rich.console import Console

from cope_loadtest.client import make_client
from cope_loadtest.records import Record
from cope_server.bench import bare, overhead, uploads
from cope_server.bench.asking import ask, body, question
from cope_server.bench.intervals import difference
from cope_server.bench.uploads import cached_share, generated
from cope_server.cli import main
from cope_server.client import ServerError
from cope_server.commands import bench_serve, serve


def test_what_both_servers_had_to_bear_cancels_out() -> None:
    """The machine gets slower from round to round; the second server takes 2 ms more in each of them."""
    before = np.add.outer(np.arange(8) * 0.1, np.linspace(0, 0.01, 20))
    apart = difference(before.tolist(), (before + 0.002).tolist(), 0.5)
    assert (apart.value, apart.low, apart.high) == pytest.approx((0.002, 0.002, 0.002))


def test_an_interval_is_as_wide_as_the_rounds_differ() -> None:
    before = np.zeros((6, 10))
    after = np.repeat([[0.001], [0.009], [0.001], [0.009], [0.001], [0.009]], 10, axis=1)
    apart = difference(before.tolist(), after.tolist(), 0.5)
    assert apart.value == pytest.approx(0.005)
    assert (apart.low, apart.high) == pytest.approx((0.001, 0.009))
    assert difference(before.tolist(), after.tolist(), 0.99).value == pytest.approx(0.009)


@pytest.mark.parametrize(("before", "after"), [([[1.0]], [[1.0], [2.0]]), ([], []), ([1.0], [1.0])])
def test_rounds_that_do_not_pair_are_refused(before: Any, after: Any) -> None:
    with pytest.raises(ValueError, match="do not pair"):
        difference(before, after, 0.5)


def records(ttft_s: float, e2el_s: float, **usage: Any) -> list[list[Record]]:
    made = Record(0, 0, "measured", "", None, 0.0, outcome="ok", usage={"prompt_tokens": 9, "completion_tokens": 4})
    made.sent, made.first_token, made.last = 1.0, 1.0 + ttft_s, 1.0 + e2el_s
    made.usage |= usage
    return [[made] * 5] * 3


def test_a_difference_is_held_against_its_mark() -> None:
    row = overhead.summary(16, records(0.010, 0.05), records(0.012, 0.0595, timings={}))
    assert (row["users"], row["requests"]) == (16, 15)
    ttft, e2el = row["ttft"]["p50"], row["e2el"]["p50"]
    assert (ttft["bare_s"], ttft["cope_s"], ttft["kept"]) == (0.01, 0.012, True)
    assert ttft["difference_s"] == {"value": 0.002, "low": 0.002, "high": 0.002}
    assert (e2el["difference_s"]["value"], e2el["mark_s"], e2el["kept"]) == (0.0095, 0.003, False)
    assert (row["e2el"]["p99"]["mark_s"], row["e2el"]["p99"]["kept"]) == (0.010, True)


@pytest.mark.parametrize(
    ("bare", "ours", "said"),
    [
        ({"timings": {}}, {"timings": {}}, "bare server has our front end"),
        ({}, {}, "ours has none"),
        ({"completion_tokens": 3}, {"timings": {}}, "completion_tokens differ: 3 bare, 4 ours"),
    ],
)
def test_servers_that_cannot_be_compared_are_not(bare: dict[str, Any], ours: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        overhead.summary(1, records(0.01, 0.02, **bare), records(0.01, 0.02, **ours))


def test_text_does_not_count_as_cached_video() -> None:
    usage = {"video": {"i_tokens": 72, "p_tokens": 28}, "prompt_tokens": 120}
    assert cached_share(usage) == 0
    assert cached_share({**usage, "prompt_tokens_details": None}) == 0
    assert cached_share({**usage, "prompt_tokens_details": {"cached_tokens": 96}}) == 0.76
    assert cached_share({**usage, "prompt_tokens_details": {"cached_tokens": 120}}) == 1


def test_both_servers_get_the_same_requests_in_turns() -> None:
    order: list[str] = []

    def behaviour(name: str, **usage: Any) -> Any:
        answer = streaming(first_s=0.01 if name == "bare" else 0.06, tokens=2, usage=lambda _: usage)

        async def behave(request: Request) -> None:
            order.append(name)
            await answer(request)

        return behave

    with serving(behaviour("bare")) as bare, serving(behaviour("cope", timings={})) as ours:
        urls = {overhead.BARE: bare.url, overhead.OURS: ours.url}
        (row,) = asyncio.run(overhead.measure(urls, "fake-model", users=[2], rounds=2, requests=6, tokens=2))
        contents = [[request.content for request in fake.seen] for fake in (bare, ours)]
    assert order == ["bare"] * 6 + ["cope"] * 12 + ["bare"] * 12 + ["cope"] * 6
    assert sorted(contents[0]) == sorted(contents[1])
    assert len(set(contents[0])) == 18
    sent = json.loads(contents[0][0])
    assert (sent["stream"], sent["max_completion_tokens"], sent["ignore_eos"]) == (True, 2, True)
    assert row["requests"] == 12
    assert 0.02 < row["ttft"]["p50"]["difference_s"]["value"] < 0.2
    assert not row["ttft"]["p50"]["kept"]


def test_a_request_that_fails_ends_the_measurement() -> None:
    async def refuse(request: Request) -> None:
        await request.answer(429, {"error": {"message": "later", "code": "queue_full"}})

    async def work(url: str) -> None:
        async with make_client(url) as client:
            await ask(client, [body("fake-model", question("a"), 2)])

    with serving(refuse) as fake, pytest.raises(ServerError, match=r"busy: HTTP 429: later \[queue_full\]"):
        asyncio.run(work(fake.url))


STAGES = dict.fromkeys(("receive", "fetch", "extract", "preprocess", "queue", "prefill"), 0.001)
VIDEO = {"seconds": 60.0, "gops": 8, "i_tokens": 72, "p_tokens": 28}


def on_files(cached: int) -> Any:
    """A server that takes 100 ms for a question on a file and none for others, with so many tokens cached."""
    seen = {"video": VIDEO, "timings": STAGES, "prompt_tokens": 120, "prompt_tokens_details": {"cached_tokens": cached}}
    slow, fast = streaming(first_s=0.1, tokens=2, usage=lambda _: seen), streaming(tokens=2)

    async def behave(request: Request) -> None:
        await (slow if len(request.json["messages"][0]["content"]) == 2 else fast)(request)

    return behave


def test_questions_with_a_prefilled_video_are_compared_with_those_without(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"an hour")
    with serving(on_files(cached=120)) as fake:
        fake.prefetches += [{"status": "queued"}, {"status": "running"}, {"status": "completed"}]
        found = asyncio.run(uploads.measure_prefilled(fake.url, "fake-model", tmp_path / "a.mp4", gops=8, questions=3))
        (form,) = fake.files.values()
        asked = [[part["type"] for part in request.json["messages"][0]["content"]] for request in fake.seen]
        file_ids = (list(fake.files), fake.deleted)
        seen = fake.seen[-1].json["messages"][0]["content"]
    for field, value in (("prefetch", "prefill"), ("options[max_gops]", "8")):
        assert f'name="{field}"\r\n\r\n{value}\r\n'.encode() in form
    assert asked[:4] == [["text"], ["file", "text"], ["file", "text"], ["text"]]  # the first two pairs do not count
    assert len(asked) == 2 * (2 + 3) and seen != fake.seen[-3].json["messages"][0]["content"]
    assert file_ids[0] == file_ids[1]
    assert 0.1 <= found["with_s"] < 0.5 and found["without_s"] < 0.1
    assert found["difference_s"]["value"] == pytest.approx(found["with_s"] - found["without_s"], abs=1e-5)
    assert (found["gops"], found["video_tokens"], found["cached_share"], found["kept"]) == (8, 100, 1.0, False)
    assert found["stages"] == STAGES


def test_a_prefill_that_fails_ends_the_measurement_and_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"an hour")
    with serving(on_files(cached=0)) as fake:
        fake.prefetches.append({"status": "failed", "error": "context_exceeded"})
        with pytest.raises(ServerError, match=r"not prefilled.*context_exceeded"):
            asyncio.run(uploads.measure_prefilled(fake.url, "fake-model", tmp_path / "a.mp4", questions=3))
        assert fake.deleted == list(fake.files)


@pytest.mark.parametrize(("cached", "share", "kept"), [(112, 0.92, True), (96, 0.76, False)])
def test_second_questions_are_told_from_first_ones(tmp_path: Path, cached: int, share: float, kept: bool) -> None:
    clips = [tmp_path / name for name in ("a.mp4", "b.mp4")]
    for clip in clips:
        clip.write_bytes(clip.name.encode())
    with serving(on_files(cached)) as fake:
        found = asyncio.run(uploads.measure_second(fake.url, "fake-model", clips))
        assert (len(fake.seen), fake.deleted) == (4, list(fake.files))
    assert (found["files"], found["cached_share"], found["kept"]) == (2, share, kept)
    assert found["decoded_gops"] is None  # this server does not count them
    assert found["second"]["stages"] == STAGES and found["second"]["ttft_s"] >= 0.1


def test_the_bare_server_differs_in_the_endpoint_plugin_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    require("ENGINE", find_spec("vllm") is not None, "vLLM is not installed (make setup)")
    started: list[tuple[Any, dict[str, str]]] = []
    monkeypatch.setattr(serve, "start", lambda args: started.append((args, dict(os.environ))))
    for name in ("VLLM_PLUGINS", "VLLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    words = ["--max-model-len", "4096", "--port", "8123"]
    for program in (lambda: main(["serve", *words]), lambda: bare.main(words)):
        try:
            program()
        finally:  # both write into the environment, which is where vLLM's other processes find their settings
            os.environ.clear()
            os.environ.update(before)
    (full, ours), (plain, theirs) = started
    assert vars(full) == vars(plain)
    names = [name for name in ours.keys() | theirs.keys() if name.startswith("VLLM_")]
    names += ["OMP_NUM_THREADS", "TORCH_COMPILE_DISABLE", "HF_HUB_OFFLINE"]
    assert [name for name in names if ours.get(name) != theirs.get(name)] == ["VLLM_PLUGINS"]
    assert (ours["VLLM_PLUGINS"], theirs.get("VLLM_PLUGINS")) == ("cope", None)


def test_a_clip_of_the_benchmark_has_a_keyframe_every_eight_seconds_and_motion(tmp_path: Path) -> None:
    import cope_codec

    video = cope_codec.open(generated(24))
    assert (len(video.plan.gops), video.plan.mode) == (3, "native")
    assert all(gop.motion.any() for gop in video.gops(64))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rounds", "0"], "--rounds must be at least 1, not 0"),
        (["--users", "1", "0"], "--users must be at least 1, not 0"),
        (["--video", "missing.mp4"], "--video: there is no file missing.mp4"),
    ],
)
def test_bad_flags_are_told_before_a_server_starts(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "serve", *words]) == 2
    assert said in capsys.readouterr().err


def test_tables_show_what_missed_its_mark() -> None:
    rows = [overhead.summary(16, records(0.010, 0.05), records(0.012, 0.0595, timings={}))]
    stages = dict.fromkeys(("receive", "fetch", "extract", "preprocess", "queue", "prefill"), 0.0012)
    apart = {"value": 0.05, "low": 0.04, "high": 0.06}
    prefilled = {"seconds": 3600.0, "gops": 64, "video_tokens": 9088, "questions": 4, "prefill_s": 3.0, "with_s": 0.07}
    prefilled |= {"without_s": 0.02, "difference_s": apart, "mark_s": 0.04, "kept": False, "stages": stages}
    side = {"stages": stages, "ttft_s": 0.0213}
    second = {"files": 2, "first": side, "second": side, "decoded_gops": 0, "cached_share": 0.97, "mark_share": 0.9}
    console = Console(width=110, record=True)
    console.print(bench_serve._text_table(rows, 16))
    console.print(bench_serve._prefilled_table(prefilled | {"cached_share": 0.99}))
    console.print(bench_serve._second_table(second | {"kept": True}))
    out = " ".join(console.export_text().split())
    assert "9.5 (9.5 to 9.5) * 3.0" in out and "2.0 (2.0 to 2.0) 3.0" in out
    assert "20.0 70.0 50.0 (40.0 to 60.0) * 40.0" in out and "9,088 tokens" in out
    assert "second 1.2 1.2 1.2 1.2 1.2 1.2 21.3" in out and "second questions: 0; at least 97.0%" in out
