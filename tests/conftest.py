"""Shared fixtures: generated clips, real videos where they are present, and what to do where they are not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from requirements import require

ROOT = Path(__file__).resolve().parent.parent
VIDEOS = Path(os.environ.get("COPE_TEST_VIDEOS", ROOT.parent / "shared" / "videos"))


@pytest.fixture(scope="session")
def videos() -> Path:
    """Folder of real clips (`COPE_TEST_VIDEOS`)."""
    require("VIDEOS", VIDEOS.is_dir(), f"there are no real videos in {VIDEOS} (set COPE_TEST_VIDEOS)")
    return VIDEOS
