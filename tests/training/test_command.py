"""`cope train` as users call it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_model import write_small

from cope_model.tiny import bundled_model
from cope_server.cli import main
from cope_training import directories

ROOT = Path(__file__).parents[2]


def log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.timeout(1500)
def test_the_whole_script_improves_over_its_start_on_a_tenth_of_the_data(tmp_path: Path) -> None:
    """Data, all three stages and evaluation, with a few of the steps."""
    variables = {
        "COPE": f"{sys.executable} -m cope_server.cli",
        "SCALE": "0.1",
        "STEPS_SCALE": "0.01",
        "LIMIT": "12",
        "ROWS_LIMIT": "6",
    }
    command = [ROOT / "training" / "runs" / "cope_tiny.sh", tmp_path]
    result = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    for stage in ("vision", "finetune"):
        losses = torch.load(tmp_path / stage / "state.pt", weights_only=True)["losses"]
        assert sum(losses[-3:]) < 0.6 * sum(losses[:3]), (stage, losses)
    # How much there is to predict differs from batch to batch, so stage 1 is compared with repeating the frame before.
    first, *_, last = (row["of_copying"] for row in log(tmp_path / "pretrain"))
    assert last < first
    report = json.loads((tmp_path / "eval.json").read_text())
    fields = "motion_acc appearance_acc binding_acc by_type chance delta_zeroed i_only motion_tokens_only"
    fields += " residual_tokens_only by_keyframes native transcode paper margins retrieval"
    assert set(fields.split()) <= set(report)
    assert all(0 <= row["acc"] <= 100 and row["questions"] == 12 for row in report["by_type"].values())
    assert len(report["by_type"]) == 19
    assert set(report["by_keyframes"]) == {"1", "2", "4"}
    weights = tmp_path / "finetune-last" / "model" / "model.safetensors"
    assert weights.stat().st_size < 24e6
    assert directories.load(weights.parent).config.geometry.i_tokens == 72


def test_evaluation_in_a_terminal(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is cut in 80 columns; only the clips that a row is about are extracted again."""
    words = ["train", "eval", str(bundled_model()), str(data), "--cache", str(tmp_path), "--workers", "1"]
    rows = "delta_zeroed,i_only,motion_tokens_only,residual_tokens_only,native,transcode,paper"
    assert main([*words, "--limit", "2", "--rows", rows, "--rows-limit", "1"]) == 0
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    for heading in ("object unknown", "native transcode paper"):
        assert heading in shown
    extracted = {}
    for settings in tmp_path.glob("*/settings.json"):
        indexes = settings.parent.glob("*/index.json")
        mode = json.loads(settings.read_text())["options"].get("mode", "auto")
        extracted[mode] = sum(len(json.loads(index.read_text())) for index in indexes)
    assert extracted["auto"] == 24
    assert 0 < extracted["transcode"] == extracted["paper"] < 24


def test_rows_about_clips_that_are_not_there_are_empty(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = data / "not-h264.json"
    rows = json.loads((data / "annotations.json").read_text())
    others.write_text(json.dumps([row for row in rows if row["codec"] != "h264"]))
    words = ["train", "eval", str(bundled_model()), str(others), "--cache", str(tmp_path), "--workers", "1", "--json"]
    assert main([*words, "--limit", "1", "--rows", "native,transcode"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["native"] is None and report["transcode"] is None
    assert report["by_type"]


def tune(data: Path, model: Path, out: Path, *more: str) -> int:
    words = ["train", "finetune", "--model", str(model), "--data", str(data), "--out", str(out), "--workers", "1"]
    settings = ["--steps", "6", "--batch", "2", "--warmup", "2", "--save-every", "2", "--log-every", "1"]
    return main([*words, *settings, "--keyframes", "1,4", *more])


def test_fine_tuning_resumes_after_a_kill_with_the_same_loss_curve(data: Path, tmp_path: Path) -> None:
    model = write_small(tmp_path)
    assert tune(data, model, tmp_path / "whole", "--cache", str(tmp_path / "cache")) == 0

    from cope_codec import VideoOptions
    from cope_training import loop, stages
    from cope_training.batches import Mixture

    settings = loop.Settings(steps=6, batch=2, warmup=2, save_every=2, log_every=1)
    stages.tune(
        model,
        [data],
        tmp_path / "cache",
        tmp_path / "killed",
        settings,
        options=VideoOptions(),
        mixture=Mixture(keyframes=(1, 4)),
        scales={},
        workers=1,
        stop_at=5,  # the last state is of step 4
    )
    assert not (tmp_path / "killed" / "model").exists()
    assert tune(data, model, tmp_path / "killed", "--cache", str(tmp_path / "cache")) == 0
    whole, killed = log(tmp_path / "whole"), log(tmp_path / "killed")
    assert [row["loss"] for row in killed] == pytest.approx([row["loss"] for row in whole], rel=1e-5)


def test_a_run_that_asked_or_trained_something_else_is_not_resumed(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out, cache = write_small(tmp_path), tmp_path / "run", ["--cache", str(tmp_path / "cache")]
    assert tune(data, model, out, *cache, "--steps", "2") == 0
    for words, message in (
        (["--keyframes", "1"], "with keyframes [1, 4], not [1]"),
        (["--questions", "3"], "with questions 8, not 3"),
        (["--groups", "motion"], "with groups [], not ['motion']"),
        (["--no-flips"], "with flips True, not False"),
        (["--part-lr", "delta=0.5"], "with part_lr {"),
        (["--focus"], "with focus False, not True"),
        (["--decode", "0.1"], "with decode 0.0, not 0.1"),
        (["--layers", "4"], "with layers 2, not 4"),
    ):
        assert tune(data, model, out, *cache, "--steps", "2", *words) == 2
        assert message in capsys.readouterr().err
    assert tune(data, write_small(tmp_path / "other", seed=2), out, *cache, "--steps", "2") == 2
    assert "holds a run with model " in capsys.readouterr().err
    # The same clips with one question less; their primitives are in the cache.
    rows = json.loads((data / "annotations.json").read_text())
    other = data / "less.json"
    other.write_text(json.dumps(rows[1:]))
    try:
        assert tune(other, model, out, *cache, "--steps", "2") == 2
    finally:
        other.unlink()
    told = capsys.readouterr().err
    assert f"with data {len(rows)} questions about 24 clips" in told
    assert f"not {len(rows) - 1} questions about 24 clips" in told
    assert tune(data, model, out, *cache, "--steps", "2", "--part-lr", "delta=1", "--dtype", "bfloat16") == 0


def test_frozen_parts_stay_as_they_are(data: Path, tmp_path: Path) -> None:
    model = write_small(tmp_path)
    frozen = ["--part-lr", "vision=0", "--part-lr", "language=0", "--cache", str(tmp_path / "cache")]
    assert tune(data, model, tmp_path / "run", *frozen) == 0
    before, after = (directories.load(folder).state_dict() for folder in (model, tmp_path / "run" / "model"))
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed
    assert all("delta_encoder" in name or "projector" in name or "newline" in name for name in changed), changed


def test_mistakes_end_in_one_line(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_small(tmp_path)
    for words, message in (
        (["--part-lr", "head=0"], "no part is called 'head'"),
        (["--part-lr", "vision"], "part-lr must look like vision=0.1, not 'vision'"),
        (["--keyframes", "9"], "keyframes must be numbers from 1 to 8"),
        (["--lr", "0"], "lr must be above 0, not 0.0"),
    ):
        assert tune(data, model, tmp_path / "out", *words) == 2
        assert message in capsys.readouterr().err
    assert tune(data, tmp_path / "nowhere", tmp_path / "out") == 2
    assert "config.json is missing" in capsys.readouterr().err
    assert main(["train", "make-data", str(tmp_path / "data"), "--clips", "0"]) == 2
    assert "clips must be at least 1, not 0" in capsys.readouterr().err
