from pathlib import Path

import pytest
import torch
from small_model import write_small

from cope_model.presets import DeltaSettings
from cope_training import directories
from cope_training.decoding import CELLS, Decoded, Decoding, coarse_motion, coarse_residual
from cope_training.pretrain import Pairs

SETTINGS = DeltaSettings(side=64, output_width=16, width=16, layers=1, heads=2, trunk_width=4)


def one_moving(column: int, row: int) -> torch.Tensor:
    """Motion of 12 px to the right in one cell of the coarse grid, (1, 16, 16, 2)."""
    motion = torch.zeros(1, 16, 16, 2, dtype=torch.int16)
    motion[0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2, 0] = 12 * 16
    return motion


def test_motion_is_told_by_cell_and_component() -> None:
    coarse = coarse_motion(one_moving(5, 2), SETTINGS).view(2, CELLS, CELLS)
    assert coarse[0, 2, 5] == pytest.approx(12 / SETTINGS.bound_px)
    assert coarse.count_nonzero() == 1


def test_a_residual_is_told_by_cell_whatever_its_sign() -> None:
    residual = torch.zeros(2, 64, 64, 3, dtype=torch.int16)
    residual[0, 8:16, 40:48] = 200
    residual[1, 8:16, 40:48] = -200
    coarse = coarse_residual(residual).view(2, CELLS, CELLS)
    assert torch.equal(coarse[0], coarse[1])
    assert coarse[0].argmax() == 1 * CELLS + 5
    assert coarse[0].mean() == pytest.approx(0, abs=1e-6)


def test_who_knows_nothing_misses_all_and_who_is_right_nothing() -> None:
    decoding = Decoding(SETTINGS)
    motion = torch.cat([one_moving(5, 2), one_moving(0, 0)])
    residual = torch.zeros(2, 64, 64, 3, dtype=torch.int16)
    tokens = torch.randn(2, 8, 16)
    lost, rest = decoding(tokens, motion, residual)
    assert 0.85 < lost.item() < 1
    assert rest.item() == 0
    with torch.no_grad():
        decoding.motion.bias.copy_(10 * coarse_motion(motion[:1], SETTINGS)[0])
    lost, _ = decoding(tokens[:1], motion[:1], residual[:1])
    assert lost.item() == pytest.approx(0, abs=1e-6)


def test_an_encoder_learns_to_tell_where_motion_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = directories.load(write_small(tmp_path))
    side = model.config.delta.side
    objective = Decoded(model)
    cells = side // 4
    motion = (torch.randn(16, 1, 1, 2) * 60).expand(16, cells, cells, 2).clone().to(torch.int16)
    motion[:8, :, : cells // 2] = 0
    motion[8:, :, cells // 2 :] = 0
    residual = torch.zeros(16, side, side, 3, dtype=torch.int16)
    pictures = torch.zeros(16, side, side, 3, dtype=torch.uint8)
    batch = Pairs(pictures, pictures, motion, residual)
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
    lost = []
    for _ in range(80):
        loss, numbers = objective(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        lost.append(float(numbers["motion_lost"]))
    assert lost[-1] < 0.3 * lost[0]
