"""The script that measures the claim on a GPU machine, rehearsed: bench, and a server with random weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
from requirements import require

ROOT = Path(__file__).parents[2]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHON": sys.executable, "PRESET": "tiny", "DEVICE": "cpu", **more}


def run(out: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ROOT / "scripts" / "gpu_claim.sh", out], env=env, capture_output=True, text=True)


@pytest.mark.timeout(600)
def test_bench_and_server_of_a_preset(tmp_path: Path) -> None:
    require("ENGINE", find_spec("vllm") is not None, "vLLM is not installed (make setup)")
    mark = uuid.uuid4().hex  # whatever the script starts inherits its environment
    env = environment(
        STEPS="bench serve",
        BENCH_ARGS="--repeats 1",
        XDG_CACHE_HOME=str(tmp_path / "cache"),
        COPE_TEST_MARK=mark,
        # Several threads wait for each other at every small matrix: minutes instead of seconds on a busy machine.
        OMP_NUM_THREADS="1",
    )
    out = tmp_path / "out"
    done = run(out, env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / "summary.txt").read_text() == "everything that was run succeeded\n"

    report = json.loads((out / "prefill-tiny.json").read_text())
    assert [row["keyframes_per_gop"] for row in report["rows"]] == [None, 4, 2, 1]
    assert [row["prompt_tokens"] for row in report["rows"]] == [4640, 2656, 1664, 1168]
    assert report["rows"][3]["ttft_cut"] > 0.5
    assert "64 dense" in (out / "prefill-tiny.txt").read_text()

    # Random weights say something, and were shown what was asked for: 7.4 s are 8 slots or 64 frames.
    for name, account in (("dense", "64 keyframes"), ("codec", "7 delta slots")):
        answer, rest = (out / f"ask-{name}.txt").read_text().split("TTFT")
        assert answer.strip()
        assert account in rest
    assert not [process for process in psutil.process_iter() if marked(process, mark)]


def test_what_is_missing_is_named_and_what_fails_ends_with_1(tmp_path: Path) -> None:
    """A Python that has none of the packages, and one of no device."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    done = run(tmp_path / "bare", environment(PYTHON=str(bare), PYTHONPATH=""))
    assert done.returncode == 0, done.stdout + done.stderr
    summary = (tmp_path / "bare" / "summary.txt").read_text()
    assert "skipped bench: this Python lacks torch transformers safetensors rich\n" in summary
    assert "skipped serve and loadtest: this Python lacks vllm av numba pebble httpx\n" in summary

    done = run(tmp_path / "failed", environment(STEPS="bench", DEVICE="abacus"))
    assert done.returncode == 1
    assert "device must be cpu, cuda or cuda:N, not 'abacus'" in done.stderr
    assert (tmp_path / "failed" / "summary.txt").read_text() == "failed bench tiny\n"


def test_a_checkout_without_installation_has_our_plugins(tmp_path: Path) -> None:
    script = ROOT / "scripts" / "plain_checkout.py"
    path = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, check=True).stdout.strip()
    code = (
        "from importlib.metadata import entry_points, version\n"
        "(plugin,) = entry_points(group='vllm.general_plugins')\n"
        "(endpoint,) = entry_points(group='vllm.endpoint_plugins')\n"
        "print(plugin.name, plugin.load().__name__, endpoint.load().__name__, version('cope-serve'))"
    )
    # -S: nothing that is installed is seen.
    found = subprocess.run(
        [sys.executable, "-S", "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert found.stdout.split()[:3] == ["cope", "register", "make_plugin"]


def marked(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get("COPE_TEST_MARK") == mark and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
