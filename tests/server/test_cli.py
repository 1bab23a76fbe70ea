from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from clips import clip
from rich.console import Console

from cope_codec import bench, samples
from cope_server.cli import main
from cope_server.commands.ask import stage_chart


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    path.write_bytes(clip(12))
    return path


def test_plan_prints_the_account_as_json(video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(video), "--preset", "7b", "--keyframes-per-gop", "2", "--json"]) == 0
    account = json.loads(capsys.readouterr().out)
    assert account == {
        "seconds": 12.0,
        "gops": 2,
        "i_frames": 3,
        "p_frames": 9,
        "i_tokens": 630,
        "p_tokens": 90,
        "video_tokens": 720,
        "mode": "native",
        "dense_tokens": 13440,
    }


def test_plan_of_dense_frames(video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(video), "--frames", "64", "--json"]) == 0
    account = json.loads(capsys.readouterr().out)
    assert (account["i_frames"], account["p_frames"], account["video_tokens"]) == (64, 0, 13440)


def test_plan_for_people(video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(video)]) == 0
    out = capsys.readouterr().out
    assert "13,440" in out
    assert "native, 2 GOPs" in out


def test_extract_writes_what_it_reports(video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, plot = tmp_path / "a.npz", tmp_path / "a.png"
    assert main(["extract", str(video), "--side", "128", "--json", "--out", str(out), "--plot", str(plot)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [gop["layout"] for gop in report["gops"]] == ["IPPPPPPP", "IPPP"]
    arrays = np.load(out)
    assert arrays["gop0.keyframes"].shape == (1, 128, 128, 3)
    assert arrays["gop1.motion"].shape == (3, 32, 32, 2)
    assert arrays["gop1.timestamps_s"].tolist() == pytest.approx(report["gops"][1]["timestamps_s"], abs=1e-6)
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert plot.stat().st_size > 50_000


def test_modes_are_told_and_damage_too(video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["extract", str(video), "--side", "64", "--mode", "paper", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["mode"], report["truncated"]) == ("paper", False)
    broken = video.with_name("broken.avi")
    data = clip(12, codec="mpeg4", container="avi", b_frames=0)
    broken.write_bytes(data[: len(data) * 2 // 3])
    assert main(["extract", str(broken), "--side", "64", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["truncated"]
    assert main(["plan", str(video), "--mode", "paper", "--fps", "2", "--json"]) == 0
    account = json.loads(capsys.readouterr().out)
    assert (account["mode"], account["i_frames"], account["p_frames"]) == ("paper", 3, 21)


def test_bench_measures_both_sides(video: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "codec", str(video), "--repeats", "2", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["files"]
    assert (row["mode"], row["frames"]) == ("native", 180)
    assert row["decode_ms_per_frame"] > 0
    assert row["ratio"] == pytest.approx(row["extract_ms_per_frame"] / row["decode_ms_per_frame"], rel=0.5)


def test_bench_of_quality_says_which_files_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"long.mp4": clip(2), "short.mp4": clip(1.5), "other.mp4": clip(2, codec="mpeg4", b_frames=0)}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    words = ["bench", "codec", "--quality", "--side", "64", *(str(tmp_path / name) for name in files)]
    assert main([*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {row["file"]: row["counted"] for row in report["files"]} == {
        "long.mp4": True,
        "short.mp4": False,
        "other.mp4": False,
    }
    (native,) = (row for row in report["files"] if (row["file"], row["mode"]) == ("long.mp4", "native"))
    assert report["geometric_mean"]["native"] == native["residual_ratio"]
    assert main(words) == 0
    assert "(0." in capsys.readouterr().out


def test_bench_of_the_pool_and_of_a_long_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "scaling_clip", lambda seconds: samples.repeated(96, 64, seconds, bit_rate=100_000))
    monkeypatch.setattr(bench, "long_file", functools.partial(bench.long_file, width=96, height=64))
    words = ["bench", "codec", "--repeats", "1", "--side", "32", "--sampled", "128"]
    assert main([*words, "--scaling", "16", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"conditions", "scaling", "sampled"}
    assert report["conditions"]["cpu"] == bench.conditions()["cpu"]
    assert (report["scaling"]["clip_s"], report["scaling"]["gops"]) == (16, 2)
    assert (report["sampled"]["seconds"], report["sampled"]["gops"]) == (128.0, 8)
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "8 GOPs of 128 s" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan", "nothing.mp4"], "nothing.mp4: No such file"),
        (["plan", __file__], "not a readable video"),
        (["plan", "{video}", "--fps", "0"], "fps must be between"),
        (["plan", "{video}", "--mode", "paper", "--fps", "7"], "mode paper takes an fps that divides 30, not 7"),
        (["plan", "{video}", "--preset", "9b"], "unknown preset '9b'"),
        (["extract", "{video}", "--side", "30"], "multiple of 4"),
        (["bench", "codec", "{video}", "--repeats", "0"], "--repeats must be at least 1"),
        (["bench", "codec", "{video}", "--peer-python", "x"], "--peer-python needs --peers"),
        (["bench", "codec", "{video}", "--peers", "--peer-python", "/nowhere"], "/nowhere cannot be started"),
        (["ask", "{video}", "Why?", "--url", "http://127.0.0.1:9"], "no server answers at http://127.0.0.1:9"),
    ],
)
def test_mistakes_end_in_one_line(
    words: list[str], message: str, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word.format(video=video) if "{video}" in word else word for word in words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_the_command_and_the_plugin_import_neither_torch_nor_vllm() -> None:
    heavy = "{'torch', 'vllm', 'transformers'}"
    script = f"import sys, cope_server.cli, cope_model, cope_codec; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_convert_joins_and_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("vllm")
    import torch
    from llava import write_llava
    from safetensors.torch import load_file, save_file

    from cope_model.llava import load_config
    from cope_model.presets import DELTA_KEYS, PRESETS
    from cope_model.reference import CoPEModel
    from cope_model.weights import DELTA

    settings = {key: getattr(PRESETS["tiny"].delta, name) for key, name in DELTA_KEYS.items()}
    base = tmp_path / "base"
    base.mkdir()
    with torch.device("meta"):
        model = CoPEModel(load_config(write_llava(base), **settings)).state_dict()
    delta = tmp_path / "delta.safetensors"
    save_file({name: torch.ones(w.shape) for name, w in model.items() if name.startswith(DELTA)}, delta)
    words = ["convert", "join", str(base), str(delta), str(tmp_path / "cope")]
    assert main(words) == 2
    assert "name it with --preset" in capsys.readouterr().err
    assert main([*words, "--preset", "tiny"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'cope'}\n"
    assert main(["convert", "split", str(tmp_path / "cope"), str(tmp_path / "out.safetensors")]) == 0
    assert load_file(tmp_path / "out.safetensors").keys() == load_file(delta).keys()
    assert main([*words, "--preset", "tiny"]) == 2
    assert "cope exists; --overwrite replaces it" in capsys.readouterr().err


def test_convert_of_a_hub_name_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "split", "lmms-lab/none", str(tmp_path / "out.safetensors")]) == 2
    assert "model: lmms-lab/none is no directory" in capsys.readouterr().err


def test_bench_delta_reports_parameters_and_ratios(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("vllm")
    assert main(["bench", "delta", "tiny", "--batch", "2", "--repeats", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    row = report["presets"]["tiny"]
    assert row["parameters"] == 1_239_980
    assert 0 < row["ratio_min"] <= row["ratio"] <= row["ratio_max"]
    assert row["ms_per_frame"] > 0
    assert report["conditions"]["batch"] == 2
    assert main(["bench", "delta", "8b"]) == 2
    assert "unknown preset 8b; known are 7b, 7b-light, tiny" in capsys.readouterr().err
    assert main(["bench", "delta", "7b", "tiny"]) == 2
    assert "different vision encoders" in capsys.readouterr().err
    assert main(["bench", "delta", "--batch", "0"]) == 2
    assert "batch must be at least 1, not 0" in capsys.readouterr().err


def test_stages_are_drawn_one_after_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    timings = {"receive": 0.0004, "fetch": None, "extract": 0.1, "prefill": 0.1, "ttft": 0.2004, "e2e": 1.0}
    Console(width=80, no_color=True).print(stage_chart(timings))
    receive, extract, prefill = (line.rstrip() for line in capsys.readouterr().out.splitlines())
    assert receive.split() == ["receive", "0.4", "ms"]
    assert (extract.split()[:3], prefill.split()[:3]) == (["extract", "100.0", "ms"], ["prefill", "100.0", "ms"])
    assert extract.count("█") == pytest.approx(20, abs=1) == prefill.count("█")
    assert extract.rindex("█") < prefill.index("█")
