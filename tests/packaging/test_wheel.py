"""The wheel, in an environment of its own: the codec library works without torch and without vLLM."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from clips import clip
from requirements import require

ROOT = Path(__file__).parents[2]
# What a user would write, and what must not have come along.
SCRIPT = """
import importlib.util, sys
import cope_codec
for gop in cope_codec.open(sys.argv[1], fps=1):
    print(gop.layout.tolist(), gop.keyframes.shape, gop.motion.shape, gop.residual.shape, gop.mode)
print(cope_codec.__file__)
print([name for name in ("torch", "vllm", "transformers") if importlib.util.find_spec(name)])
"""


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)


def needed(done: subprocess.CompletedProcess[str]) -> None:
    """A step that takes packages from an index: without a network it cannot be done."""
    require("PACKAGING", done.returncode == 0, f"packages cannot be installed here: {done.stderr.strip()[-500:]}")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    needed(run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", folder, ROOT, cwd=folder))
    (built,) = folder.glob("cope_serve-*.whl")
    return built


def test_the_wheel_holds_the_packages_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    packages = {"cope_codec", "cope_loadtest", "cope_model", "cope_server", "cope_training"}
    assert {top for top in tops if not top.endswith(".dist-info")} == packages
    assert "cope_codec/py.typed" in names
    assert "cope_codec/bench/peer_script.py" in names
    assert "cope_loadtest/scenarios/codec-vs-dense.toml" in names
    assert "cope_model/data/cope-tiny/model.safetensors" in names


def test_the_codec_library_alone(wheel: Path, tmp_path: Path) -> None:
    needed(run(sys.executable, "-m", "venv", "--without-pip", "env", cwd=tmp_path))
    python = tmp_path / "env" / "bin" / "python"
    # By this environment's pip, and without compiling thousands of modules of which few are imported: half the time.
    pip = (sys.executable, "-m", "pip", "--python", python)
    needed(run(*pip, "install", "--quiet", "--no-compile", f"{wheel}[codec]", cwd=tmp_path))
    (tmp_path / "clip.mp4").write_bytes(clip(12))
    done = run(python, "-c", SCRIPT, "clip.mp4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second, where, heavy = done.stdout.splitlines()
    assert first == "[0, 1, 1, 1, 1, 1, 1, 1] (1, 384, 384, 3) (7, 96, 96, 2) (7, 384, 384, 3) native"
    assert second.startswith("[0, 1, 1, 1] (1, 384, 384, 3)")
    assert where.startswith(str(tmp_path / "env"))
    assert heavy == "[]"
    done = run(tmp_path / "env" / "bin" / "cope", "plan", "clip.mp4", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert '"gops": 2' in done.stdout
