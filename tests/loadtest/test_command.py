"""`cope loadtest` as its user runs it, against servers that behave well and badly."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fake_chat import Fake, Request, serving, streaming

from cope_server.cli import main

FAST = (
    *("--set", "corpus.seconds=2", "--set", "corpus.width=160", "--set", "corpus.height=96", "--set", "corpus.fps=10"),
    *("--no-selfcheck", "--seed", "5"),
)
TEXT = "[load]\nrequests = 6\nwarmup = 1\n[requests.text]\nkind = 'text'\nprompt_words = 20\n"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips that all tests here share, as long as they keep the seed."""
    return tmp_path_factory.mktemp("clips")


def run(fake: Fake, out: Path, *words: str, clips: Path | None = None) -> tuple[int, dict[str, Any]]:
    more = () if clips is None else ("--clips", str(clips))
    code = main(["loadtest", "run", *words, "--base-url", fake.url, "--out", str(out), *FAST, *more])
    return code, json.loads((out / "report.json").read_text())


def scenario(folder: Path, text: str = TEXT) -> str:
    path = folder / "scenario.toml"
    path.write_text(text)
    return str(path)


def account(request: Request) -> dict[str, Any]:
    """Usage as the real server gives it, with stages that add up to what the fake takes."""
    options = request.json["messages"][0]["content"][0]["video_url"]
    frames = options.get("frames", 1)
    video = {"seconds": 2.0, "gops": 1, "i_frames": frames, "p_frames": 1, "i_tokens": 10 * frames, "p_tokens": 5}
    timings = {"receive": 0.0, "fetch": 0.0, "extract": 0.03, "preprocess": 0.01, "queue": 0.0, "prefill": 0.06}
    return {
        "prompt_tokens": 10 * frames + 25,
        "video": {**video, "dense_tokens": 640, "mode": "native"},
        "timings": timings,
    }


def test_smoke_from_end_to_end(tmp_path: Path, clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(streaming(first_s=0.1, gap_s=0.01, usage=account)) as fake:
        code, report = run(fake, tmp_path, "smoke", clips=clips)
    assert code == 0 == report["verdict"]["exit_code"]
    assert [point["label"] for point in report["points"]] == ["codec", "dense"]
    for point in report["points"]:
        assert point["outcomes"] == {"ok": 8} and point["uncounted"] == 2  # both warm clips were sent before
        assert point["metrics"]["ttft_s"]["p50"]["value"] >= 0.1
        assert point["stages"]["median_s"]["prefill"] == 0.06
        assert point["tokens"]["text_tokens"] == 20
    assert len(report["requests"]) == len(fake.seen) == 20
    assert report["conditions"]["model"] == "fake-model" and report["conditions"]["seed"] == 5
    assert len(report["corpus"]) == 2 and report["codec_vs_dense"][0]["dense_frames"] == 8
    told = capsys.readouterr().out
    assert "codec" in told and "TTFT" in told and str(tmp_path / "report.html") in told.replace("\n", "")
    bodies = [request.json for request in fake.seen]
    assert {body["model"] for body in bodies} == {"fake-model"}
    assert all(body["stream"] and body["stream_options"] == {"include_usage": True} for body in bodies)
    # The clips are what the manifest says.
    sent = {body["messages"][0]["content"][0]["video_url"]["url"] for body in bodies}
    digests = {hashlib.sha256(base64.b64decode(url.removeprefix("data:video/mp4;base64,"))).hexdigest() for url in sent}
    assert digests == {entry["sha256"] for entry in report["corpus"]}


class Links(HTMLParser):
    """Collects whatever a page would fetch, and checks that tags are balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.svgs = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for name, value in attributes if name in ("src", "href", "xlink:href", "data")]
        self.svgs += tag == "svg"
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        pass


def test_the_page_needs_nothing_else(tmp_path: Path, clips: Path) -> None:
    words = ("--requests", "2", "--set", "matrix.concurrency=[1]", "--set", "corpus.warm_clips=1", "--rounds", "1")
    with serving(streaming(first_s=0.02, usage=account)) as fake:
        code, report = run(fake, tmp_path, "codec-vs-dense", *words, clips=clips)
    assert code == 0
    assert [(row["keyframes_per_gop"], row["cache"]) for row in report["codec_vs_dense"]] == [
        (4, "cold"),
        (2, "cold"),
        (1, "cold"),
        (4, "warm"),
        (2, "warm"),
        (1, "warm"),
    ]
    page = (tmp_path / "report.html").read_text()
    links = Links()
    links.feed(page)
    assert links.fetched == [] and links.open == [] and "@import" not in page and "url(" not in page
    for title in ("TTFT over keyframes per GOP", "Where the time to the first token goes", "Token account"):
        assert title in page
    files = {path.stem: path.read_text() for path in (tmp_path / "plots").iterdir()}
    assert set(files) == {"keyframes-cold", "keyframes-warm", "points", "stages", "tokens"}
    for text in files.values():
        root = ElementTree.fromstring(text)
        assert root.tag == "{http://www.w3.org/2000/svg}svg" and "url(" not in text
    assert links.svgs >= 4 and "<script" not in page and "64 RGB frames" in page


def test_length_and_load_are_plotted(tmp_path: Path, clips: Path) -> None:
    with serving(streaming(first_s=0.02, usage=account)) as fake:
        words = ("--requests", "2", "--rounds", "1", "--set", "matrix.seconds=[1, 2]", "--warmup", "0")
        run(fake, tmp_path / "length", "ttft-vs-length", *words, clips=clips)
        words = ("--duration", "0.5", "--set", "load.ramp_s=0", "--set", "sweep.values=[8, 16]")
        code, report = run(fake, tmp_path / "load", "overload", *words, clips=clips)
    assert code == 0
    assert "TTFT over video length" in (tmp_path / "length" / "report.html").read_text()
    assert "Latency over rate" in (tmp_path / "load" / "report.html").read_text()
    assert report["knees"][0]["sustained"] in (8, 16, 12)


def test_what_servers_say_is_escaped(tmp_path: Path) -> None:
    async def nasty(request: Request) -> None:
        await request.answer(500, {"error": {"message": "<script>alert(1)</script>", "code": None}})

    text = TEXT.replace("requests.text", 'requests."<b>x</b>"') + "[matrix]\nrequest = ['<b>x</b>']\n"
    with serving(nasty) as fake:
        code, _ = run(fake, tmp_path, scenario(tmp_path, text), "--model", "<i>m</i>")
    page = (tmp_path / "report.html").read_text()
    assert code == 3 and "<script" not in page and "<b>" not in page and "<i>m" not in page and "&lt;b&gt;" in page


def test_failures_are_in_the_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def behave(request: Request) -> None:
        if request.number >= 4:
            raise ConnectionError
        await streaming()(request)

    with serving(behave) as fake:
        code, report = run(fake, tmp_path, scenario(tmp_path))
    assert code == 3 and report["points"][0]["outcomes"] == {"ok": 3, "disconnected": 3}
    assert report["verdict"]["failed"] == 3
    assert "3 requests failed" in capsys.readouterr().out


def test_expected_outcomes_are_no_failures(tmp_path: Path) -> None:
    async def behave(request: Request) -> None:
        if request.number % 2:
            await request.answer(429, {"error": {"message": "busy", "code": "queue_full"}})
        else:
            await streaming()(request)

    with serving(behave) as fake:
        code, report = run(fake, tmp_path, scenario(tmp_path, "expected = ['busy']\n" + TEXT))
    assert code == 0 and report["points"][0]["outcomes"] == {"ok": 3, "busy": 3}


def test_a_missed_slo_is_in_the_exit_code(tmp_path: Path) -> None:
    with serving(streaming(first_s=0.1)) as fake:
        code, report = run(fake, tmp_path, scenario(tmp_path, TEXT + "[slo]\nttft_s = 0.05\n"))
        assert code == 1 and report["verdict"]["slo_missed"] == ["all requests"]
        assert report["points"][0]["goodput"]["share"] == 0
        code, report = run(fake, tmp_path, scenario(tmp_path, TEXT + "[slo]\nttft_s = 5\n"))
        assert code == 0 and report["points"][0]["goodput"]["share"] == 1


def test_no_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = scenario(tmp_path)
    words = ["loadtest", "run", path, "--base-url", "http://127.0.0.1:9", "--out", str(tmp_path / "out")]
    assert main(words) == 3
    said = capsys.readouterr().err
    assert "no server answers at http://127.0.0.1:9" in said and len(said.strip().splitlines()) == 1
    # With a model's name nobody is asked before: every request fails by itself.
    assert main([*words, "--model", "m", *FAST]) == 3
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["points"][0]["outcomes"] == {"connect_error": 6}
    assert (tmp_path / "out" / "report.html").is_file()


def test_uploads_are_sent_before_and_removed_after(tmp_path: Path, clips: Path) -> None:
    with serving(streaming()) as fake:
        code, report = run(fake, tmp_path, "smoke", "--transport", "upload", "--requests", "2", clips=clips)
    assert code == 0
    assert sorted(fake.deleted) == sorted(fake.files) == ["file-0", "file-1"]
    assert set(report["uploads_s"]) == {entry["file"] for entry in report["corpus"]}
    part = fake.seen[0].json["messages"][0]["content"][0]
    assert part == {"type": "file", "file": {"file_id": "file-0", "keyframes_per_gop": 1}}
    content = (clips / report["corpus"][0]["file"]).read_bytes()
    assert any(content in body for body in fake.files.values())


def test_a_server_without_uploads(tmp_path: Path, clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def behave(_: Request) -> None:
        raise AssertionError("nothing must be asked")

    with serving(behave) as fake:
        words = ["loadtest", "run", "smoke", "--base-url", fake.url + "/nowhere", "--model", "m", *FAST]
        code = main([*words, "--transport", "upload", "--clips", str(clips), "--out", str(tmp_path)])
    assert code == 3
    report = json.loads((tmp_path / "report.json").read_text())
    assert "transport upload: " in report["verdict"]["trouble"]
    assert "transport upload: " in capsys.readouterr().out


def test_clips_by_url_and_by_path(tmp_path: Path, clips: Path) -> None:
    fetched = []

    async def behave(request: Request) -> None:
        url = request.json["messages"][0]["content"][0]["video_url"]["url"]
        fetched.append(await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=10).read()))
        await streaming()(request)

    with serving(behave) as fake:
        for transport in ("url", "file"):
            words = ("smoke", "--transport", transport, "--requests", "1", "--set", "corpus.warm_clips=1")
            code, report = run(fake, tmp_path, *words, clips=clips)
            assert code == 0
            assert set(map(len, fetched)) == {report["corpus"][0]["bytes"]}
            url = fake.seen[-1].json["messages"][0]["content"][0]["video_url"]["url"]
            assert url.startswith("http://127.0.0.1:" if transport == "url" else "file:///")


def test_the_users_own_folder(tmp_path: Path, clips: Path) -> None:
    with serving(streaming()) as fake:
        run(fake, tmp_path / "a", "smoke", "--requests", "1", clips=clips)
        before = sorted(clips.iterdir())
        code, report = run(fake, tmp_path / "b", "smoke", "--requests", "1", "--corpus", str(clips))
    assert code == 0 and sorted(clips.iterdir()) == before
    assert [entry["file"] for entry in report["corpus"]] == sorted(path.name for path in clips.glob("*.mp4"))[:2]


def test_several_scenarios_in_one_go(tmp_path: Path, clips: Path) -> None:
    one, other = tmp_path / "one.toml", tmp_path / "other.toml"
    one.write_text(TEXT)
    other.write_text(TEXT + "[slo]\nttft_s = 0.001\n")
    with serving(streaming(first_s=0.01)) as fake:
        words = ["loadtest", "run", str(one), str(other), "--base-url", fake.url, "--out", str(tmp_path / "out"), *FAST]
        assert main(words) == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["one", "other"]


def test_cold_text_is_new_every_time_and_warm_is_not(tmp_path: Path) -> None:
    for cache, different in (("cold", 7), ("warm", 2)):
        with serving(streaming()) as fake:
            run(fake, tmp_path, scenario(tmp_path, f"cache = '{cache}'\n" + TEXT))
        texts = {request.json["messages"][0]["content"][0]["text"] for request in fake.seen}
        assert len(texts) == different
        assert all(len(text.split()) >= 20 for text in texts)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_runs_still_report(number: int, tmp_path: Path) -> None:
    path = scenario(tmp_path, TEXT.replace("requests = 6", "duration_s = 60"))
    out = tmp_path / "out"
    with serving(streaming(first_s=0.2)) as fake:
        words = ["loadtest", "run", path, "--base-url", fake.url, "--out", str(out), *FAST]
        process = subprocess.Popen(
            [sys.executable, "-m", "cope_server.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 60
        while len(fake.seen) < 4 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(number)
        said, problems = process.communicate(timeout=30)
    assert process.returncode == 130, problems
    report = json.loads((out / "report.json").read_text())
    assert report["verdict"]["interrupted"] is True and "interrupted" in said
    counts = report["points"][0]["outcomes"]
    assert counts["ok"] >= 2 and counts["cut_off"] == 1
    assert len(report["requests"]) == len(fake.seen)
    assert "interrupted" in (out / "report.html").read_text()


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    before = set(os.listdir("/proc/self/fd"))
    with serving(streaming()) as fake:
        words = ["loadtest", "run", "smoke", "--requests", "1", "--base-url", fake.url, "--out", str(tmp_path / "out")]
        assert main([*words, *FAST[:8], "--transport", "url"]) == 0
    assert list(folder.iterdir()) == []
    assert len(set(os.listdir("/proc/self/fd")) - before) <= 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["plots", "report.html", "report.json"]


def test_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = scenario(tmp_path, TEXT.replace("requests = 6", "requests = 12"))
    for name, first_s in (("a", 0.05), ("b", 0.25)):
        # With a gap: a time per token of a tenth of a millisecond would be all noise, and often "worse".
        with serving(streaming(first_s=first_s, gap_s=0.05)) as fake:
            run(fake, tmp_path / name, path)
    slow, fast = tmp_path / "b" / "report.json", tmp_path / "a" / "report.json"
    capsys.readouterr()
    assert main(["loadtest", "compare", str(fast), str(slow), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    row = next(row for row in found["changes"] if (row["metric"], row["quantile"]) == ("ttft_s", "p50"))
    assert row["verdict"] == "worse" and row["change"] > 1
    assert row["change_interval"][0] <= row["change"] <= row["change_interval"][1]
    assert main(["loadtest", "compare", str(slow), str(fast)]) == 0
    assert "better" in capsys.readouterr().out
    assert main(["loadtest", "compare", str(fast), str(fast)]) == 0
    assert main(["loadtest", "compare", str(fast), str(slow), "--threshold", "1000"]) == 0


def test_compare_sees_lost_answers_and_missed_slos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = scenario(tmp_path)
    with serving(streaming()) as fake:
        run(fake, tmp_path, path)
    good = json.loads((tmp_path / "report.json").read_text())
    worse = json.loads((tmp_path / "report.json").read_text())
    worse["requests"][3]["outcome"] = "server_error"
    missed = json.loads((tmp_path / "report.json").read_text())
    missed["verdict"]["slo_missed"] = ["all requests"]
    other = json.loads((tmp_path / "report.json").read_text())
    other["points"][0]["place"] = {"cache": "cold"}
    for name, report in (("good", good), ("worse", worse), ("missed", missed), ("other", other), ("none", {})):
        (tmp_path / f"{name}.json").write_text(json.dumps(report))

    def compare(after: str) -> tuple[int, str]:
        capsys.readouterr()
        code = main(["loadtest", "compare", str(tmp_path / "good.json"), str(tmp_path / f"{after}.json")])
        said = capsys.readouterr()
        return code, re.sub(r"\s+", " ", said.out + said.err)

    assert compare("worse")[0] == 1 and "fewer answers all requests" in compare("worse")[1]
    assert compare("missed")[0] == 1 and "SLO missed all requests" in compare("missed")[1]
    assert compare("other")[0] == 2 and "no point in common" in compare("other")[1]
    assert compare("none")[0] == 2 and "no report of" in compare("none")[1]
    del worse["requests"][0]["scheduled_s"]
    (tmp_path / "worse.json").write_text(json.dumps(worse))
    assert compare("worse")[0] == 2 and "damaged: KeyError: 'scheduled_s'" in compare("worse")[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "nothing"], "no scenario 'nothing'"),
        (["run", "smoke", "--seed", "-1"], "--seed must not be negative"),
        (["run", "smoke", "--requests", "0"], "load: requests must be at least 1"),
        (["run", "smoke", "--set", "load.ramp_s"], "--set must look like"),
        (["run", "smoke", "--set", "load.colour='red'"], "load.colour is unknown"),
        (["run", "codec-vs-dense", "--cache", "lukewarm"], "cache must be one of cold, warm"),
        (["run", "smoke", "--rate", "3"], "load.rate means nothing where load.arrival is closed"),
        (["run", "overload", "--concurrency", "3"], "load.concurrency means nothing where load.arrival is not closed"),
        (["run", "smoke", "--base-url", "host:8000"], "--base-url must begin with http:// or https://"),
        (["compare", "/nowhere/a.json", "/nowhere/b.json"], "/nowhere/a.json: No such file"),
    ],
)
def test_mistakes_end_in_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["loadtest", *words]) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.strip().splitlines()) == 1


def test_the_scenarios_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["loadtest", "list"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("smoke", "codec-vs-dense", "overload"))


def test_the_client_is_light() -> None:
    script = (
        "import sys, cope_loadtest.command, cope_loadtest.scenario, cope_loadtest.execute, cope_loadtest.report;"
        "heavy = {'torch', 'vllm', 'av', 'numba'}; ours = {'cope_codec', 'cope_server', 'cope_model', 'cope_training'};"
        "print((heavy | ours) & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_serve_starts_a_server_for_the_run_and_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []

    with serving(streaming()) as fake:

        @contextmanager
        def own_server(folder: Path, words: Sequence[str]) -> Iterator[str]:
            assert folder.is_dir()
            told.append(list(words))
            yield fake.url
            told.append("ended")

        monkeypatch.setattr("cope_server.commands.loadtest.own_server", own_server)
        words = ["loadtest", "run", scenario(tmp_path), "--out", str(tmp_path / "out"), *FAST]
        assert main([*words, "--serve=my-model --max-model-len 4096"]) == 0
    assert told == [["my-model", "--max-model-len", "4096"], "ended"]
    assert len(fake.seen) == 7
