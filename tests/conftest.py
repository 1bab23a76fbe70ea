"""Shared fixtures: real videos where they are present; and the order of tests where several run at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from requirements import VIDEOS, require

# What takes longest begins first, so that no worker is left with it at the end.
FIRST = ("e2e", "model")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The order in which several workers (`pytest -n 2 --dist loadfile`) take files from the list."""
    if hasattr(config, "workerinput"):
        tests = Path(__file__).parent
        items.sort(key=lambda item: item.path.relative_to(tests).parts[0] not in FIRST)


@pytest.fixture(scope="session")
def videos() -> Path:
    """Folder of real clips (`COPE_TEST_VIDEOS`)."""
    folder = Path(VIDEOS) if VIDEOS else None
    require("VIDEOS", folder is not None and folder.is_dir(), "COPE_TEST_VIDEOS names no folder of real videos")
    assert folder is not None
    return folder
