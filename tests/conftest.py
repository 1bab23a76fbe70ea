"""Shared fixtures: generated clips, real videos where they are present, and what to do where they are not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
VIDEOS = Path(os.environ.get("COPE_TEST_VIDEOS", ROOT.parent / "shared" / "videos"))


def require(what: str, present: bool, reason: str) -> None:
    """Skip with a reason, or fail where `COPE_REQUIRE_<what>` says that the thing must be there."""
    if present:
        return
    if os.environ.get(f"COPE_REQUIRE_{what}"):
        pytest.fail(f"COPE_REQUIRE_{what} is set, but {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def videos() -> Path:
    """Folder of real clips (`COPE_TEST_VIDEOS`)."""
    require("VIDEOS", VIDEOS.is_dir(), f"there are no real videos in {VIDEOS} (set COPE_TEST_VIDEOS)")
    return VIDEOS
