"""A small data set that the tests of the training share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from requirements import require


def _installed() -> bool:
    try:
        import accelerate  # noqa: F401
        import torch  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.fixture(scope="session", autouse=True)
def _training() -> None:
    require("ENGINE", _installed(), "the extra 'training' is not installed")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training clips."""
    from cope_training import make_data

    folder = tmp_path_factory.mktemp("data")
    make_data.make(folder, make_data.Recipe(clips=24, seed=5, held_out=False), workers=1)
    return folder


@pytest.fixture(autouse=True)
def _accelerate_forgets() -> Iterator[None]:
    """Accelerate keeps a process's first precision; a process of `cope train` has only one."""
    from accelerate.state import AcceleratorState

    yield
    AcceleratorState._reset_state(reset_partial_state=True)
