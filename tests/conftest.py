"""Shared fixtures: real videos where they are present; and the order of tests where several run at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from requirements import VIDEOS, require

# What takes longest begins first, so that no worker is left with it at the end.
FIRST = ("training/test_command.py", "e2e/", "model/")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The order in which several workers (`pytest -n 2 --dist loadfile`) take files from the list."""

    def place(item: pytest.Item) -> int:
        file = item.path.relative_to(Path(__file__).parent).as_posix()
        return next((number for number, start in enumerate(FIRST) if file.startswith(start)), len(FIRST))

    if hasattr(config, "workerinput"):
        items.sort(key=place)


@pytest.fixture(scope="session")
def videos() -> Path:
    """Folder of real clips (`COPE_TEST_VIDEOS`)."""
    folder = Path(VIDEOS) if VIDEOS else None
    require("VIDEOS", folder is not None and folder.is_dir(), "COPE_TEST_VIDEOS names no folder of real videos")
    assert folder is not None
    return folder
