"""The same training in several processes, with a process that makes batches, and in bfloat16."""

from __future__ import annotations

import multiprocessing
import socket
from pathlib import Path

import pytest
import ranks
import torch
from safetensors.torch import load_file
from small_model import write_small


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    write_small(folder)
    return folder


@pytest.fixture(scope="module")
def alone(data: Path, home: Path) -> list[float]:
    """Losses of one process that makes its batches itself."""
    return ranks.tune(home / "model", data, home / "cache", home / "alone", ranks.settings())


def test_two_processes_have_the_losses_of_one_and_end_with_equal_weights(
    data: Path, home: Path, alone: list[float]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out = home / "together"
    given = (2, port, home / "model", data, home / "cache", out)
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=ranks.tune_as, args=(rank, *given)) for rank in range(2)]
    try:
        for process in both:
            process.start()
        for process in both:
            process.join(240)
        assert [process.exitcode for process in both] == [0, 0]
    finally:
        for process in both:
            process.kill()
    first, second = (torch.load(out / f"rank-{rank}.pt", weights_only=True) for rank in range(2))
    # Each process has half of the clips; losses are means over both.
    assert first["losses"] == second["losses"] == pytest.approx(alone, rel=1e-3)
    assert all(tensor.equal(second["weights"][name]) for name, tensor in first["weights"].items())
    written = load_file(out / "model" / "model.safetensors")
    assert all(tensor.equal(first["weights"][name]) for name, tensor in written.items())
    start = load_file(home / "model" / "model.safetensors")
    assert not all(tensor.equal(written[name]) for name, tensor in start.items())
    with pytest.raises(ValueError, match="holds a run with batch 2, not 4"):
        ranks.tune(home / "model", data, home / "cache", out, ranks.settings())
    with pytest.raises(ValueError, match="holds a run with processes 2, not 1"):
        ranks.tune(home / "model", data, home / "cache", out, ranks.settings(batch=2))


def test_a_process_that_makes_batches_changes_no_loss(data: Path, home: Path, alone: list[float]) -> None:
    losses = ranks.tune(home / "model", data, home / "cache", home / "loaders", ranks.settings(loaders=1))
    assert losses == pytest.approx(alone, rel=1e-6)


def test_bfloat16_trains_and_weights_are_of_the_type_that_is_asked_for(
    data: Path, home: Path, alone: list[float]
) -> None:
    out, how = home / "bfloat16", ranks.settings(steps=2, precision="bf16")
    losses = ranks.tune(home / "model", data, home / "cache", out, how, dtype="bfloat16")
    assert losses[0] == pytest.approx(alone[0], rel=0.02)
    assert losses[0] != alone[0]
    assert {tensor.dtype for tensor in load_file(out / "model" / "model.safetensors").values()} == {torch.bfloat16}
