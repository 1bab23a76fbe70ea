"""The small model, built once for all tests of this folder."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """These modules import the engine at their top: without it there is nothing to collect."""
    without = find_spec("vllm") is None or find_spec("torch") is None
    return True if without and collection_path.name.startswith("test_") else None


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Matrices this small are slowed down threefold by threads that wait for each other on a busy machine."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of cope-tiny's shape with random weights, which show a weight in the wrong place."""
    from random_model import write_random

    return write_random(tmp_path_factory.mktemp("model") / "cope-tiny")
