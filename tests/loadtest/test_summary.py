"""Figures: quantiles and intervals, goodput, the server's stages, the paper's table, the knee."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from cope_loadtest.arrivals import Load
from cope_loadtest.intervals import change, resampled, summarise
from cope_loadtest.knee import Knee, search, why_not_sustained
from cope_loadtest.paper_form import codec_vs_dense
from cope_loadtest.records import Record
from cope_loadtest.scenario import Point, Scenario, Slo, Sweep, read_scenario
from cope_loadtest.server_metrics import growth, parse_counters
from cope_loadtest.stages import summarise_stages
from cope_loadtest.summary import Measured, meets, summarise_point


def record(
    ttft: float = 0.1,
    *,
    tokens: int = 5,
    tpot: float = 0.01,
    outcome: str = "ok",
    usage: dict[str, Any] | None = None,
    due: float = 0.0,
    phase: str = "measured",
    kind: str = "a",
) -> Record:
    """An answer whose first token came `ttft` after it was due, and the others `tpot` apart; sent 0.01 s late."""
    times = [due + ttft + k * tpot for k in range(tokens)]
    return Record(
        point=0,
        number=0,
        phase=phase,  # type: ignore[arg-type]
        kind=kind,
        clip=None,
        scheduled=due,
        sent=due + 0.01,
        body_sent=due + 0.02,
        first_byte=due + 0.03,
        first_token=times[0] if outcome == "ok" else None,
        tokens=times if outcome == "ok" else [],
        last=times[-1] + 0.001,
        outcome=outcome,
        usage={"completion_tokens": tokens, "prompt_tokens": 50, **(usage or {})},
    )


def point(**table: Any) -> Point:
    return scenario(**table).points[0]


def scenario(**table: Any) -> Scenario:
    return read_scenario({"load": {"requests": 10}, "requests": {"a": {}}, **table}, "test")


def measured(records: Sequence[Record], of: Point | None = None) -> Measured:
    made = Measured(of or point())
    made.add(records)
    return made


def test_quantiles_are_numpys_and_lie_in_their_intervals() -> None:
    values = np.random.default_rng(1).lognormal(size=300).tolist()
    found = summarise(values)
    assert found is not None and found["n"] == 300
    for name, quantile in (("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99)):
        assert found[name]["value"] == pytest.approx(np.quantile(values, quantile), abs=1e-6)
        assert found[name]["low"] <= found[name]["value"] <= found[name]["high"]
    assert found["p99"]["high"] - found["p99"]["low"] > found["p50"]["high"] - found["p50"]["low"]
    assert summarise([]) is None
    one = summarise([0.5])
    assert one is not None and one["p99"] == {"value": 0.5, "low": 0.5, "high": 0.5}


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    random = np.random.default_rng(2)
    held = 0
    for _ in range(200):
        found = summarise(random.exponential(size=60).tolist())
        assert found is not None
        held += found["p50"]["low"] <= np.log(2) <= found["p50"]["high"]
    assert 0.88 <= held / 200 <= 0.99


def test_intervals_do_not_depend_on_the_memory_that_they_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    values = list(np.random.default_rng(3).random(100))
    assert resampled(values, [0.5, 0.9]).shape == (1000, 2)
    monkeypatch.setattr("cope_loadtest.intervals._BLOCK", 5000)
    blocks = resampled(values, [0.5, 0.9])
    assert blocks.shape == (1000, 2) and blocks[:, 0].std() > 0


def test_a_change_is_relative_and_has_its_interval() -> None:
    random = np.random.default_rng(4)
    before = random.normal(1.0, 0.05, 200).tolist()
    found = change(before, [value * 1.3 for value in before], 0.5)
    assert found.value == pytest.approx(0.3, abs=1e-6)
    assert 0.25 < found.low < 0.3 < found.high < 0.35
    same = change(before, random.normal(1.0, 0.05, 200).tolist(), 0.5)
    assert same.low < 0 < same.high


def test_a_point_is_summed_up() -> None:
    records = [record(0.1 + 0.01 * k, due=float(k)) for k in range(9)]
    records += [record(outcome="busy", due=9.0), record(9.0, phase="warmup")]
    found = summarise_point(measured(records), Slo(), expected=("busy",))
    assert found["requests"] == 10 and found["uncounted"] == 1
    assert found["outcomes"] == {"ok": 9, "busy": 1} and found["failed"] == 0
    ttft = found["metrics"]["ttft_s"]
    assert (ttft["n"], ttft["p50"]["value"]) == (9, pytest.approx(0.14))
    assert found["metrics"]["ttft_sent_s"]["p50"]["value"] == pytest.approx(0.13)
    assert found["metrics"]["ttft_body_s"]["p50"]["value"] == pytest.approx(0.12)
    assert found["metrics"]["upload_s"]["p50"]["value"] == pytest.approx(0.01)
    assert found["metrics"]["tpot_s"]["p50"]["value"] == pytest.approx(0.01)
    assert found["metrics"]["itl_s"]["n"] == 9 * 4
    assert found["metrics"]["e2el_s"]["p50"]["value"] == pytest.approx(0.181)
    assert found["seconds"] == pytest.approx(9.141) and found["requests_per_s"] == pytest.approx(9 / 9.141, abs=1e-3)
    assert found["kept_up"] == pytest.approx(9 / 8.08, abs=1e-3)
    assert found["tokens"] == {"prompt_tokens": 50}
    assert "goodput" not in found
    assert summarise_point(measured(records), Slo())["failed"] == 1


def test_tokens_per_answer_are_the_servers_count() -> None:
    # Two tokens in each chunk: five chunks, ten tokens.
    assert record(usage={"completion_tokens": 10}).tpot_s == pytest.approx(0.04 / 9)


def test_the_end_of_the_text_is_a_token_that_takes_its_time() -> None:
    one_word = record(0.1, tokens=1, usage={"completion_tokens": 2})
    one_word.finished = 0.1 + 0.04
    assert one_word.tpot_s == pytest.approx(0.04)


def test_goodput_counts_answers_within_every_limit() -> None:
    slo = Slo(ttft_s=0.2, tpot_s=0.02, e2el_s=0.5, share=0.5)
    assert meets(record(0.19), slo)
    assert not meets(record(0.21), slo)
    assert not meets(record(0.1, tpot=0.03), slo)
    assert not meets(record(0.1, tokens=50), slo)  # e2el
    assert not meets(record(0.1, outcome="broken_stream"), slo)
    assert meets(record(0.1, tokens=1), slo)  # no time per further token
    records = [record(0.1), record(0.3), record(0.1, outcome="busy"), record(0.1, due=3.0)]
    found = summarise_point(measured(records), slo)["goodput"]
    assert found["share"] == 0.5 and found["met"] is True and found["wanted"] == 0.5
    assert found["requests_per_s"] == pytest.approx(2 / 3.141, abs=1e-3)
    assert summarise_point(measured(records[1:]), slo)["goodput"]["met"] is False
    assert summarise_point(measured([]), slo)["goodput"]["met"] is False


def test_kinds_of_a_mixed_point_are_told_apart() -> None:
    mixed = point(requests={"text": {"kind": "text"}, "video": {}})
    records = [record(0.1, kind="text"), record(0.2, kind="text"), record(0.9, kind="video")]
    found = summarise_point(measured(records, mixed), Slo())["by_request"]
    assert found["text"]["ttft_s"]["p50"]["value"] == pytest.approx(0.15)
    assert found["video"]["n"] == 1


def stages(**seconds: float) -> dict[str, Any]:
    return {"timings": {"ttft": sum(seconds.values()), "e2e": 1.0, "queue": None, **seconds}}


def test_stages_explain_the_time_to_the_first_token() -> None:
    told = stages(receive=0.01, fetch=0.0, extract=0.03, preprocess=0.01, prefill=0.039)
    found = summarise_stages([record(0.1, usage=told) for _ in range(3)])
    assert found is not None and found["n"] == 3
    assert found["median_s"]["extract"] == 0.03 and "queue" not in found["median_s"]
    assert found["check"]["ttft_sent_s"] == pytest.approx(0.09)
    assert found["check"]["sum_s"] == pytest.approx(0.089)
    assert found["check"]["unexplained_s"] == pytest.approx(0.001) and found["check"]["explained"] is True


def test_time_that_no_stage_tells_of_is_found() -> None:
    found = summarise_stages([record(0.2, usage=stages(receive=0.01, prefill=0.1))])
    assert found is not None
    assert found["check"]["unexplained_s"] == pytest.approx(0.08) and found["check"]["explained"] is False
    # Stages that are longer than the client's time are no explanation either.
    assert summarise_stages([record(0.1, usage=stages(prefill=0.3))])["check"]["explained"] is False  # type: ignore


def test_servers_without_stages() -> None:
    assert summarise_stages([record(), record(usage={"timings": None}), record(usage={"timings": {}})]) is None


def test_the_token_account_is_the_servers() -> None:
    video = {"seconds": 8.0, "i_tokens": 20, "p_tokens": 7, "dense_tokens": 160, "mode": "native", "gops": 1}
    details = {"cached_tokens": 16}
    usage = {"video": video, "prompt_tokens_details": details}
    found = summarise_point(measured([record(usage=usage)] * 3), Slo())["tokens"]
    assert found["cached_tokens"] == 16
    assert found["text_tokens"] == 23 and found["dense_tokens"] == 160 and found["modes"] == {"native": 3}


def test_the_papers_table() -> None:
    table = {
        "requests": {"d": {"options": {"frames": 64}}, "c": {"options": {"keyframes_per_gop": 2}}},
        "cache": "cold",
        "matrix": {"concurrency": [1, 8], "request": ["d", "c"]},
    }
    points = scenario(**table).points
    random = np.random.default_rng(5)
    made = [
        measured([record(base * random.normal(1, 0.05), tokens=2, tpot=0.1) for _ in range(30)], one)
        for one, base in zip(points, (1.0, 0.2, 2.0, 1.0), strict=True)
    ]
    rows = codec_vs_dense(made)
    assert [(row["keyframes_per_gop"], row["concurrency"], row["cache"]) for row in rows] == [
        (2, 1, "cold"),
        (2, 8, "cold"),
    ]
    first = rows[0]
    assert first["ttft_s"] == pytest.approx(0.2, rel=0.05) and first["dense_ttft_s"] == pytest.approx(1.0, rel=0.05)
    assert first["ttft_cut"] == pytest.approx(1 - first["ttft_s"] / first["dense_ttft_s"], abs=1e-5)
    assert first["ttft_cut"] == pytest.approx(0.8, abs=0.02) and rows[1]["ttft_cut"] == pytest.approx(0.5, abs=0.04)
    assert first["e2el_cut"] == pytest.approx(1 - 0.3 / 1.1, abs=0.02)
    for name in ("ttft_s", "dense_ttft_s", "ttft_cut", "e2el_s", "dense_e2el_s", "e2el_cut"):
        low, high = first[f"{name}_interval"]
        assert low <= first[name] <= high and high > low
    assert first["n"] == first["dense_n"] == 30 and first["dense_frames"] == 64
    assert codec_vs_dense(made[1:2]) == []  # nothing dense beside it


def run_search(sweep: Sweep, limit: float) -> tuple[Knee, list[float]]:
    tried: list[float] = []

    async def measure(value: float) -> dict[str, Any]:
        tried.append(value)
        return {"value": value}

    def why_not(summary: dict[str, Any], first: dict[str, Any]) -> str | None:
        assert first["value"] == tried[0]
        return None if summary["value"] <= limit else f"{summary['value']:g} is too much"

    return asyncio.run(search(sweep, measure, why_not)), tried


def test_the_knee_is_between_what_was_kept_up_with_and_what_was_not() -> None:
    knee, tried = run_search(Sweep("rate", (1, 2, 4, 8, 16), knee_steps=3), limit=5.2)
    assert tried == [1, 2, 4, 8, 6, 5, 5.5]
    assert knee == Knee("rate", 5, 5.5, "5.5 is too much")
    knee, tried = run_search(Sweep("concurrency", (1, 4), knee_steps=9), limit=2)
    assert tried == [1, 4, 2, 3] and (knee.sustained, knee.exceeded) == (2, 3)


def test_knees_outside_of_the_sweep() -> None:
    knee, tried = run_search(Sweep("rate", (1, 2), knee_steps=3), limit=99)
    assert tried == [1, 2] and knee == Knee("rate", 2, None, None)
    knee, tried = run_search(Sweep("rate", (1, 2), knee_steps=3), limit=0.5)
    assert tried == [1] and knee == Knee("rate", None, 1, "1 is too much")


def why(records: Sequence[Record], slo: Slo | None = None, first: Sequence[Record] | None = None) -> str | None:
    load = Load(arrival="constant", rate=1.0, requests=10)
    limits = slo or Slo()
    summary = summarise_point(measured(records), limits)
    lowest = summary if first is None else summarise_point(measured(first), limits)
    return why_not_sustained(summary, lowest, Sweep("rate", (1,)), load, limits)


def test_reasons_why_a_load_is_too_much() -> None:
    good = [record(0.1, due=float(k)) for k in range(10)]
    assert why(good) is None
    assert why([]) == "no request was measured"
    assert why([*good, record(outcome="busy"), record(outcome="busy")]) == "2 of 12 requests were not answered"
    piling = [record(0.1 + 0.5 * k, due=float(k)) for k in range(10)]
    assert why(piling) == "answers came 0.67 times as fast as requests"
    slow = [record(0.4, due=float(k)) for k in range(10)]
    assert why(slow, first=good) == "p95 of TTFT 0.4 s, 0.1 s at the lowest load"
    assert why(slow, Slo(ttft_s=0.5), good) is None  # the SLO decides
    assert why(slow, Slo(ttft_s=0.3), good) == "0% of requests within the SLO, wanted 95%"


def test_counters_of_the_server() -> None:
    text = (
        "# HELP cope_codec_cache_hits_total x\ncope_codec_cache_hits_total 5\n"
        'vllm:prefix_cache_hits_total{engine="0"} 10\nvllm:prefix_cache_hits_total{engine="1"} 2.5\nother_total 7\n'
        "cope_codec_cache_misses_total broken\n"
    )
    now = parse_counters(text)
    assert now == {"cope_codec_cache_hits_total": 5, "vllm:prefix_cache_hits_total": 12.5}
    assert growth({"cope_codec_cache_hits_total": 2}, now) == {
        "cope_codec_cache_hits_total": 3,
        "vllm:prefix_cache_hits_total": 12.5,
    }
