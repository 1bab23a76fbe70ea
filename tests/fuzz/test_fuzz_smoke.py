"""The coverage-guided fuzzer runs, and finds nothing in a few seconds; `make fuzz SECONDS=600` looks for longer."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from requirements import require

SECONDS = 5


def test_a_few_seconds_find_nothing(tmp_path: Path) -> None:
    present = importlib.util.find_spec("atheris") is not None
    require("FUZZER", present, "atheris is not installed (pip install cope-serve[fuzz])")
    script = Path(__file__).with_name("run.py")
    command = [sys.executable, str(script), "--seconds", str(SECONDS), "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Done " in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]  # findings would lie beside it


@pytest.mark.parametrize("data", [b"", b"\0", b"text" * 9])
def test_what_is_no_video_has_a_code(data: bytes) -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        import harness
    finally:
        sys.path.pop(0)
    assert harness.check(data) in ("nothing", "invalid_video")
