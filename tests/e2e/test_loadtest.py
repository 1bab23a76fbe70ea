"""The load test against the real server: its clips are read, its account and times are the server's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from serving import Server

from cope_server.cli import main


def run(server: Server, out: Path, *words: str) -> dict[str, Any]:
    code = main(["loadtest", "run", *words, "--base-url", server.url, "--out", str(out)])
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    problems = {row["detail"] for row in report["requests"] if row["outcome"] != "ok"}
    assert code == 0, problems or report["verdict"]
    return report


def test_codec_against_dense(server: Server, tmp_path: Path) -> None:
    words = ["--requests", "2", "--rounds", "1", "--set", "matrix.concurrency=[2]", "--set", "corpus.seconds=16"]
    # 64 frames and 64 tokens take their time on a CPU.
    words += ["--set", "requests.dense-64.options={frames=16}", "--no-selfcheck"]
    for kind in ("dense-64", "codec-4", "codec-2", "codec-1"):
        words += ["--set", f"requests.{kind}.max_tokens=4"]
    report = run(server, tmp_path, "codec-vs-dense", *words)
    rows = report["codec_vs_dense"]
    assert [(row["cache"], row["keyframes_per_gop"]) for row in rows] == [
        (c, k) for c in ("cold", "warm") for k in (4, 2, 1)
    ]
    assert all(row["n"] == 2 and row["ttft_s"] > 0 and row["dense_ttft_s"] > 0 for row in rows)
    for point in report["points"]:
        assert point["outcomes"] == {"ok": 2}
        tokens = point["tokens"]
        if point["place"]["request"] == "dense-64":
            assert (tokens["i_frames"], tokens["p_tokens"], tokens["modes"]) == (16, 0, {"dense": 2})
            assert tokens["dense_tokens"] == 4 * tokens["i_tokens"]
        else:
            keyframes = int(point["place"]["request"][-1])
            assert tokens["i_frames"] == 2 * keyframes and tokens["p_frames"] == 16 - 2 * keyframes
        # A cold clip's primitives are made, a warm one's are found.
        hits, misses = (point["counters"][f"cope_codec_cache_{name}_total"] for name in ("hits", "misses"))
        assert (hits == 0 < misses) if point["cache"] == "cold" else (misses == 0 < hits)
    for row in report["requests"]:
        assert row["usage"]["completion_tokens"] == 4
        assert row["scheduled_s"] <= row["sent_s"] <= row["body_sent_s"] <= row["first_byte_s"] <= row["first_token_s"]
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_text_and_video_at_once_in_bursts(server: Server, tmp_path: Path) -> None:
    report = run(
        server,
        tmp_path,
        "mixed",
        *("--requests", "6", "--rate", "6", "--set", "corpus.seconds=4", "--seed", "3", "--no-selfcheck"),
    )
    kinds = {row["request"] for row in report["requests"] if row["phase"] == "measured"}
    assert {"text", "codec-1"} <= kinds
    assert [point["place"] for point in report["points"]] == [{"arrival": "poisson"}, {"arrival": "burst"}]


def test_clips_on_the_servers_own_disk(server: Server, tmp_path: Path) -> None:
    words = ("--transport", "file", "--clips", str(server.folder), "--requests", "2")
    report = run(server, tmp_path, "smoke", *words)
    assert report["selfcheck"]["chunks_per_s"] > 2000
    assert all(point["overhead"]["requests"] >= 5 for point in report["points"])
    assert all(row["body_bytes"] < 1000 for row in report["requests"])


def test_a_refusal_is_told(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("[load]\nrequests = 2\n[corpus]\nseconds = 1\n[requests.a]\noptions = { frames = 99999 }\n")
    words = ["loadtest", "run", str(path), "--base-url", server.url, "--out", str(tmp_path), "--no-selfcheck"]
    assert main(words) == 3
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["points"][0]["outcomes"] == {"refused": 2}
    assert "frames must be between" in report["requests"][-1]["detail"]
    assert "requests failed" in capsys.readouterr().out
