"""Fuzzes `cope_codec` with atheris: `make fuzz SECONDS=60`, or with libFuzzer's own options behind `--`.

What it finds lies in `.fuzz/`, one file per input; `run.py FILE...` tries such files again.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import atheris

# Numba cannot compile instrumented bytecode, so modules with kernels are left as they are.
PACKAGE = Path(find_spec("cope_codec").submodule_search_locations[0])  # type: ignore[union-attr, index]
KERNELS = [f"cope_codec.{path.stem}" for path in PACKAGE.glob("*.py") if "njit" in path.read_text()]
with atheris.instrument_imports(include=["cope_codec"], exclude=KERNELS):
    import cope_codec  # noqa: F401 - imported first, so that it is instrumented

import harness  # noqa: E402

ROOT = Path(__file__).parents[2] / ".fuzz"


def main() -> None:
    """Fuzz for some time, or try given files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="inputs to try once instead of fuzzing")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--folder", type=Path, default=ROOT, help="corpus and findings (default: .fuzz)")
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    arguments = parser.parse_args(words[:split])
    harness.prepare()
    if arguments.files:
        for file in arguments.files:
            print(f"{file}: {harness.check(file.read_bytes())}")
        return
    corpus = arguments.folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for name, data in harness.seeds().items():
        (corpus / name).write_bytes(data)
        harness.check(data)  # kernels are compiled and libraries bound before anything is timed
    outcomes: Counter[str] = Counter()
    owner = os.getpid()

    def try_one(data: bytes) -> None:
        outcomes[harness.check(data)] += 1
        if os.getpid() == owner and sum(outcomes.values()) % 2000 == 0:
            print(f"{sum(outcomes.values())} inputs: {dict(outcomes.most_common())}", flush=True)

    options = [f"-max_total_time={arguments.seconds}", "-max_len=65536", "-timeout=20", "-rss_limit_mb=3000"]
    found = f"-artifact_prefix={arguments.folder}/"
    atheris.Setup([sys.argv[0], *options, found, *words[split + 1 :], str(corpus)], try_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
