"""Shared fixtures: generated clips, real videos where they are present, and what to do where they are not."""

from __future__ import annotations

from pathlib import Path

import pytest
from requirements import VIDEOS, require


@pytest.fixture(scope="session")
def videos() -> Path:
    """Folder of real clips (`COPE_TEST_VIDEOS`)."""
    folder = Path(VIDEOS) if VIDEOS else None
    require("VIDEOS", folder is not None and folder.is_dir(), "COPE_TEST_VIDEOS names no folder of real videos")
    assert folder is not None
    return folder
