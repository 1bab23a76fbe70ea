"""Our clock beside other load tests': who sends what, when they agree, and what happens if one of them fails."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fake_chat import Fake, Request, serving, streaming

from cope_loadtest.crosscheck import Samples, compare
from cope_loadtest.scenario import bundled, load_scenario
from cope_server.cli import main

TOOL = str(Path(__file__).parent / "other_tool.py")
SMALL = (
    *("--set", "corpus.seconds=1", "--set", "corpus.width=64", "--set", "corpus.height=64", "--set", "corpus.fps=5"),
    *("--seed", "4", "--requests", "10", "--rounds", "2"),
)


def words(fake: Fake, out: Path, *more: str, tool: str = TOOL) -> list[str]:
    tools = ("--vllm", tool, "--guidellm", tool)
    return ["loadtest", "crosscheck", "--base-url", fake.url, "--out", str(out), *SMALL, *tools, *more]


def behave(monkeypatch: pytest.MonkeyPatch, **how: Any) -> None:
    monkeypatch.setenv("COPE_TEST_TOOL", json.dumps(how))


def report_of(out: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((out / "crosscheck.json").read_text())
    return report


def client_of(request: Request) -> str:
    return "ours" if request.headers.get("user-agent") == "cope-loadtest" else "other"


def test_all_send_the_same_requests_in_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cope_loadtest.crosscheck.FLOOR_S", 10.0)  # this machine may have more to do
    with serving(streaming(first_s=0.05)) as fake:
        assert main(words(fake, tmp_path)) == 0
    report = report_of(tmp_path)
    places = [(row["point"], row["tool"]) for row in report["rows"]]
    assert places == [(cache, tool) for cache in ("warm", "cold") for tool in ("vllm bench serve", "guidellm")]
    for row in report["rows"]:
        assert row["agrees"] and row["n"] == row["our_n"] == 10 and row["our_ttft_s"] >= 0.05
        assert row["difference_interval"][0] <= row["difference_s"] <= row["difference_interval"][1]
    assert report["tools"] == {"vllm bench serve": "vllm 1.2.3", "guidellm": "guidellm 1.2.3"}
    bodies = [request.json for request in fake.seen]
    # Byte for byte the same but for the order of names: options, length of the answer, temperature, the model's name.
    assert len({json.dumps({**body, "messages": 0}, sort_keys=True) for body in bodies}) == 1
    videos = [body["messages"][0]["content"][0]["video_url"] for body in bodies]
    assert {video["keyframes_per_gop"] for video in videos} == {1}
    # Two rounds of two points by three clients, and each user's first request of a round is not counted. Two warm
    # clips are sent before each round.
    assert len(bodies) == 3 * 2 * (10 + 2) + 2 * 2
    clips = Counter(video["url"] for video in videos)
    assert sorted(clips.values()) == [1] * 36 + [20, 20] and len(report["corpus"]) == 38
    # Nobody is always first. Before each warm round there are our own two.
    turns = "".join("o" if client_of(request) == "ours" else "t" for request in fake.seen)
    first = "oo" + "o" * 6 + "t" * 12 + "t" * 12 + "o" * 6  # warm: ours, vLLM, guidellm; cold: vLLM, guidellm, ours
    assert turns == first + "oo" + "t" * 12 + "o" * 6 + "t" * 6 + "o" * 6 + "t" * 6
    told = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert told.count("agrees") == 4 and "crosscheck.json" in told


def test_a_clock_that_differs_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    behave(monkeypatch, late_s=1.0)
    with serving(streaming(first_s=0.05)) as fake:
        assert main(words(fake, tmp_path, "--set", "matrix.cache=['warm']")) == 1
    for row in report_of(tmp_path)["rows"]:
        assert not row["agrees"] and 0.5 < row["difference_s"] < 1.5
    assert "differs" in capsys.readouterr().out


def test_the_mark_is_a_share_or_a_floor() -> None:
    point = load_scenario(bundled()["crosscheck"]).points[0]
    for ours, theirs, agrees in (
        (0.010, 0.0129, True),
        (0.010, 0.0131, False),
        (1.0, 1.049, True),
        (1.0, 0.949, False),
    ):
        samples = Samples([ours + 0.001] * 5, [ours] * 5, {"t": [theirs] * 5, "silent": []})
        (row,) = compare(point, samples, {"t": "t 1"})
        assert row["agrees"] is agrees
        assert row["difference_s"] == pytest.approx(theirs - ours) and row["allowed_s"] == max(0.003, 0.05 * ours)
        assert row["our_ttft_scheduled_s"] == pytest.approx(ours + 0.001)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"fail": True}, "vllm bench serve: exit code 1; see"),
        ({"refused": True}, "vllm bench serve: 1 requests failed: no such model"),
        ({"short": True}, "vllm bench serve: 5 answers to 6 requests"),
    ],
)
def test_a_tool_that_fails(
    how: dict[str, Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    behave(monkeypatch, **how)
    with serving(streaming()) as fake:
        assert main(words(fake, tmp_path)) == 3
    assert report_of(tmp_path)["verdict"]["trouble"].startswith(message)
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert message in said and ("went wrong" in said) == ("fail" in how)


def test_requests_of_ours_that_fail(tmp_path: Path) -> None:
    async def busy(request: Request) -> None:
        await request.answer(429, {"error": {"message": "busy", "code": "queue_full"}})

    with serving(busy) as fake:
        assert main(words(fake, tmp_path)) == 3
    assert "cope loadtest: 2 requests failed: busy: HTTP 429" in report_of(tmp_path)["verdict"]["trouble"]


def test_too_few_requests_conclude_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(streaming(first_s=0.02)) as fake:
        assert main(words(fake, tmp_path, "--requests", "4", "--rounds", "1")) == 3
    assert "nothing can be concluded" in re.sub(r"\s+", " ", capsys.readouterr().out)


def test_ctrl_c_ends_the_tool_and_everything_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "pids"
    behave(monkeypatch, hang=str(told))
    with serving(streaming()) as fake:
        process = subprocess.Popen(
            [sys.executable, "-m", "cope_server.cli", *words(fake, tmp_path / "out")], stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while not (told.is_file() and len(told.read_text().split()) == 2) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    report = report_of(tmp_path / "out")
    assert report["verdict"]["interrupted"] and len(report["samples"][0]["our_ttft_s"]) == 5
    for number in map(int, told.read_text().split()):
        state = Path(f"/proc/{number}/stat")
        assert not state.exists() or state.read_text().split()[2] == "Z"


def test_the_key_is_in_no_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "very-secret")
    with serving(streaming(first_s=0.01)) as fake:
        main(words(fake, tmp_path, "--set", "matrix.cache=['warm']"))
    commands = [path.read_text() for path in tmp_path.glob("*/command.txt")]
    assert len(commands) == 4 and not any("very-secret" in command for command in commands)
    configs = list(tmp_path.glob("guidellm-*/config.json"))
    assert len(configs) == 2 and all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in configs)
    assert all(json.loads(path.read_text())["spec"]["backend"]["api_key"] == "very-secret" for path in configs)


def test_text_and_several_users(tmp_path: Path) -> None:
    path = tmp_path / "text.toml"
    path.write_text("[load]\nrequests = 8\nconcurrency = 2\n[requests.text]\nkind = 'text'\nprompt_words = 5\n")
    with serving(streaming(first_s=0.02)) as fake:
        code = main([*words(fake, tmp_path / "out"), "--requests", "8", "--cache", "cold", str(path)])
    report = report_of(tmp_path / "out")
    assert code in (0, 1) and {row["n"] for row in report["rows"]} == {8}
    assert len(fake.seen) == 3 * (8 + 2 * 2)


def test_missing_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    behave(monkeypatch, missing=True)
    with serving(streaming()) as fake:
        assert main(words(fake, tmp_path)) == 2
        assert f"vllm bench serve: {TOOL} has no pandas" in capsys.readouterr().err
        assert main(words(fake, tmp_path, tool="/nowhere/python")) == 2
        assert "vllm bench serve: /nowhere/python: No such file" in capsys.readouterr().err
        monkeypatch.setattr("sys.executable", TOOL)
        assert main(["loadtest", "crosscheck", "--base-url", fake.url, *SMALL]) == 2
        said = capsys.readouterr().err
    assert "left out: guidellm" in said and "no other load test is installed" in said
    assert fake.seen == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["overload"], "sweep: a cross-check compares points"),
        (["smoke", "--set", "load.arrival='poisson'"], "load.arrival must be closed"),
        (["smoke", "--duration", "5"], "load.requests alone must bound"),
        (["smoke", "--set", "load.ramp_s=5"], "load.ramp_s must be 0"),
        (["smoke", "--set", "matrix={}"], "requests: a cross-check takes one kind at a point"),
    ],
)
def test_what_the_other_tools_cannot_do(more: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    for what in (["crosscheck"], ["export", "--out", "/nowhere"]):
        assert main(["loadtest", *what, *more]) == 2
        assert message in capsys.readouterr().err


def test_export_writes_what_the_tools_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["loadtest", "export", "smoke", "--out", str(out), *SMALL, "--model", "m"]) == 0
    told = capsys.readouterr().out
    assert "codec: 12 requests" in told and "vllm.benchmarks" in told and "-m guidellm run" in told
    kinds = {1: {"keyframes_per_gop": 1}, 2: {"frames": 8}}
    for number, options in kinds.items():
        for name, column in (("vllm", "prompt"), ("guidellm", "messages")):
            lines = (out / f"{name}-{number}" / "requests.jsonl").read_text().splitlines()
            messages = [json.loads(line)[column] for line in lines]
            assert len(messages) == 12
            for (message,) in messages:
                video, question = message["content"]
                url = video["video_url"].pop("url")
                assert url.startswith("data:video/mp4;base64,") and video["video_url"] == options
                assert question["type"] == "text" and question["text"].endswith("?")
    assert sorted(path.suffix for path in (out / "clips").iterdir()) == [".json", *[".mp4"] * 4]
    assert main(["loadtest", "export", "smoke", "--out", str(out), *SMALL, "--transport", "upload"]) == 2
    assert "transport must be data or file for an export" in capsys.readouterr().err


def test_the_stand_in_can_be_run() -> None:
    assert os.access(TOOL, os.X_OK)
