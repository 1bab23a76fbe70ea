"""What a test needs beyond Python: skip with a reason where it is missing, or fail where it must be there."""

from __future__ import annotations

import os

import pytest

VIDEOS = os.environ.get("COPE_TEST_VIDEOS")  # folder of real clips


def require(what: str, present: bool, reason: str) -> None:
    """Skip with a reason, or fail where `COPE_REQUIRE_<what>` says that the thing must be there."""
    if present:
        return
    if os.environ.get(f"COPE_REQUIRE_{what}"):
        pytest.fail(f"COPE_REQUIRE_{what} is set, but {reason}")
    pytest.skip(reason)
