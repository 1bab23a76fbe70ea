"""Directories that are whole or absent: written beside their place, then moved there."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def appearing(out: Path, overwrite: bool) -> Iterator[Path]:
    """A directory beside `out` that takes its place at the end, or leaves what was there.

    Args:
        out: where to.
        overwrite: replace what is there; without it there must be nothing.

    Raises:
        OSError: it cannot be written, or `out` exists and is not to be replaced.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield building
        building.chmod(0o755)  # mkdtemp's 0700 would hide it from a server that runs as another user
        if overwrite and out.exists():
            # Moved and not removed first: that takes long, and a kill within it would leave neither.
            old = Path(tempfile.mkdtemp(prefix=f".{out.name}-old-", dir=out.parent))
            out.rename(old / out.name)
            try:
                building.rename(out)
            except BaseException:
                (old / out.name).rename(out)
                old.rmdir()
                raise
            shutil.rmtree(old)
        else:
            building.rename(out)
    finally:
        shutil.rmtree(building, ignore_errors=True)
