"""`cope-tiny`: the bundled model, small, random and the same on every machine. `python -m cope_model.tiny OUT`."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from cope_model.corpus import sentences
from cope_model.presets import PRESETS

_SEED = 20260330
# Raise when the same preset and corpus begin to give other files; the cache directory's name follows.
_FORMAT = 1
_DATA = Path(__file__).parent / "data"


def build(out_dir: str | Path) -> Path:
    """Write the model into a directory, made if missing; the same bytes every time.

    Returns:
        The directory.
    """
    from cope_model.checkpoint import write_files, write_weights

    preset = PRESETS["tiny"]
    target = Path(out_dir)
    target.mkdir(parents=True, exist_ok=True)
    write_files(target, preset)
    parameters = write_weights(target, preset, _SEED)
    card = (_DATA / "model_card.md").read_text(encoding="utf-8")
    geometry = preset.geometry
    card = card.format(parameters=parameters, i_tokens=geometry.i_tokens, p_tokens=geometry.p_tokens)
    (target / "README.md").write_text(card, encoding="utf-8")
    return target


def fingerprint() -> str:
    """What the files depend on, as a short name: format, seed, preset, corpus, chat template and model card."""
    digest = hashlib.blake2b(f"{_FORMAT} {_SEED}".encode(), digest_size=6)
    digest.update(json.dumps(PRESETS["tiny"].config_kwargs(), sort_keys=True).encode())
    for line in sentences():
        digest.update(line.encode() + b"\n")
    for name in ("chat_template.jinja", "model_card.md"):
        digest.update((_DATA / name).read_bytes())
    return digest.hexdigest()


def cache_dir() -> Path:
    """`$COPE_CACHE`, or `~/.cache/cope-serve`."""
    return Path(os.environ.get("COPE_CACHE") or Path.home() / ".cache" / "cope-serve")


def ensure_tiny() -> Path:
    """The model's directory in the cache, built on first use (a few seconds); safe to call from several processes."""
    target = cache_dir() / f"cope-tiny-{fingerprint()}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    # Built beside its place and moved there: whoever sees the directory sees all of it.
    building = Path(tempfile.mkdtemp(prefix="building-", dir=target.parent))
    try:
        build(building)
        building.chmod(0o755)  # mkdtemp's 0700 would hide it from a server that runs as another user
        building.rename(target)
    except OSError:
        if not target.is_dir():  # otherwise another process was faster
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return target


def main() -> None:
    """Entry point of `python -m cope_model.tiny`."""
    parser = argparse.ArgumentParser(
        prog="python -m cope_model.tiny", description="Write the untrained cope-tiny model."
    )
    parser.add_argument("out", metavar="OUT", help="directory to write to")
    build(parser.parse_args().out)


if __name__ == "__main__":
    main()
