"""`cope bench serve` in small: vLLM's own server beside the shared one, and questions on uploaded files."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
from messages import planned_tokens
from serving import Server

from cope_server.bench import bare, overhead, uploads
from cope_server.local_server import own_server

MODEL = "cope-tiny"
FAR_S = 0.05  # a front end that adds so much to every request would be broken, on a busy machine too


def test_the_bare_server_is_vllms_own_and_does_the_same_work(server: Server, tmp_path: Path) -> None:
    with own_server(tmp_path, ["--max-model-len", "16384"], bare.PROGRAM) as plain:
        assert httpx.get(f"{plain}/v1/files").status_code == 404
        assert "/v1/videos/plan" not in httpx.get(f"{plain}/openapi.json").json()["paths"]
        urls = {overhead.BARE: plain, overhead.OURS: server.url}
        rows = asyncio.run(overhead.measure(urls, MODEL, users=[1, 4], rounds=3, requests=8, tokens=4))
    assert [(row["users"], row["requests"]) for row in rows] == [(1, 24), (4, 24)]
    for row in rows:
        for name in ("ttft", "e2el"):
            cell = row[name]["p50"]
            assert 0 < cell["bare_s"] and 0 < cell["cope_s"]
            assert cell["difference_s"]["low"] < FAR_S
        assert row["ttft"]["p50"]["cope_s"] < row["e2el"]["p50"]["cope_s"]


def test_questions_on_a_prefilled_video_wait_for_little(server: Server, tmp_path: Path) -> None:
    data = uploads.generated(150)
    (tmp_path / "long.mp4").write_bytes(data)
    found = asyncio.run(uploads.measure_prefilled(server.url, MODEL, tmp_path / "long.mp4", gops=8, questions=3))
    assert (found["gops"], found["video_tokens"]) == (8, planned_tokens(data, max_gops=8))
    assert found["cached_share"] >= uploads.MARK_CACHED
    assert found["difference_s"]["low"] < found["prefill_s"]
    assert found["stages"]["prefill"] < found["with_s"]
    kept = httpx.get(f"{server.url}/v1/files").json()["data"]
    assert "long.mp4" not in [file["filename"] for file in kept]


def test_a_second_question_decodes_nothing(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(uploads.generated(60, seed=77))
    found = asyncio.run(uploads.measure_second(server.url, MODEL, [tmp_path / "a.mp4"]))
    assert found["decoded_gops"] == 0
    assert found["cached_share"] >= uploads.MARK_CACHED
    assert found["kept"]
    assert found["second"]["stages"]["extract"] < found["first"]["stages"]["extract"]
