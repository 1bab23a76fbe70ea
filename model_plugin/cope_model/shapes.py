"""Model directories without weights, made on demand: what `cope serve --preset` serves with random ones."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path


def cached_shape(preset_name: str, environment: Mapping[str, str] = os.environ) -> Path:
    """The directory of a preset's configuration, tokenizer and chat template.

    It lies in the user's cache, below a digest of its own contents: another version of the code makes another one, and
    the engine, which keys what it compiles by the model's path, finds it again.

    Args:
        preset_name: a key of `PRESETS`.
        environment: `XDG_CACHE_HOME` may name the cache; the default is `~/.cache`.

    Raises:
        ValueError: no preset has this name.
        OSError: the cache cannot be written.
    """
    from cope_model.checkpoint import write_shape
    from cope_model.presets import PRESETS

    if preset_name not in PRESETS:
        raise ValueError(f"--preset must be one of {', '.join(PRESETS)}, not {preset_name!r}")
    cache = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cope-serve" / "presets"
    cache.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=".building-", dir=cache))
    try:
        written = write_shape(preset_name, building / f"cope-random-{preset_name}")
        home = cache / _digest(written)
        target = home / written.name
        if not target.is_dir():
            home.mkdir(exist_ok=True)
            try:
                written.rename(target)
            except OSError:  # another server was faster
                if not target.is_dir():
                    raise
        return target
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _digest(directory: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        data = path.read_bytes()
        found.update(f"{path.name}\0{len(data)}\0".encode() + data)
    return found.hexdigest()[:16]
