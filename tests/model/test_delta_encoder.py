"""The delta-encoder: shapes, what its inputs mean, and its size."""

# P P-frames, S = 128 side of the model's square input (px), C = 32 motion cells a side.

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cope_model.delta_encoder import DeltaEncoder, count_parameters, motion_patches, normalize_motion
from cope_model.presets import PRESETS

TINY = PRESETS["tiny"].delta


def encoder(**change: object) -> DeltaEncoder:
    torch.manual_seed(0)
    return DeltaEncoder(replace(TINY, **change)).eval()  # type: ignore[arg-type]


def primitives(p_frames: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    motion = torch.randint(-400, 401, (p_frames, 32, 32, 2), generator=generator, dtype=torch.int16)
    residual = torch.randint(-255, 256, (p_frames, 128, 128, 3), generator=generator, dtype=torch.int16)
    return motion, residual


def test_sizes_are_those_that_the_paper_states_or_claims() -> None:
    assert count_parameters(PRESETS["7b"].delta) == pytest.approx(141e6, rel=0.01)
    assert count_parameters(PRESETS["7b-light"].delta) < 15_000_000
    assert count_parameters(TINY) == 1_239_980 == sum(p.numel() for p in DeltaEncoder(TINY).parameters())


def test_four_motion_tokens_come_before_four_residual_tokens() -> None:
    model = encoder()
    motion, residual = primitives(3)
    with torch.inference_mode():
        tokens = model(motion, residual)
        other_motion = model(primitives(3, seed=1)[0], residual)
        other_residual = model(motion, primitives(3, seed=1)[1])
    assert tokens.shape == (3, 8, 128)
    assert torch.equal(other_motion[:, 4:], tokens[:, 4:])
    assert not torch.allclose(other_motion[:, :4], tokens[:, :4], atol=1e-3)
    assert torch.equal(other_residual[:, :4], tokens[:, :4])
    assert not torch.allclose(other_residual[:, 4:], tokens[:, 4:], atol=1e-3)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_a_p_frame_does_not_depend_on_its_batch(norm: str) -> None:
    model = encoder(trunk_norm=norm)
    motion, residual = primitives(5)
    with torch.inference_mode():
        together = model(motion, residual)
        alone = torch.cat([model(motion[i : i + 1], residual[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-4)


def test_no_p_frames_give_no_tokens() -> None:
    assert encoder()(*primitives(0)).shape == (0, 8, 128)


def test_a_narrow_inside_ends_at_the_vision_width() -> None:
    assert encoder(width=64, output_width=128)(*primitives(2)).shape == (2, 8, 128)


def test_stride_32_is_a_plain_resnet_18() -> None:
    wide = replace(TINY, trunk_stride=32)
    assert DeltaEncoder(wide).residual.transformer.positions.shape[0] == 4 * 4
    assert DeltaEncoder(TINY).residual.transformer.positions.shape[0] == 8 * 8
    assert encoder(trunk_stride=32)(*primitives(1)).shape == (1, 8, 128)


def test_patches_are_the_cells_of_16_by_16_pixels_row_by_row() -> None:
    motion = torch.zeros(1, 32, 32, 2)
    motion[0, 5, 9] = torch.tensor([3.0, 4.0])  # patch row 1, column 2; within it row 1, column 1
    patches = motion_patches(motion, 4)
    assert patches.shape == (1, 64, 32)
    assert torch.nonzero(patches[0]).tolist() == [[1 * 8 + 2, (1 * 4 + 1) * 2], [1 * 8 + 2, (1 * 4 + 1) * 2 + 1]]
    assert patches[0, 10, 10:12].tolist() == [3.0, 4.0]


def test_fixed_bounds_keep_sign_and_magnitude() -> None:
    # A quarter of the side is 32 px, i.e. 512 sixteenths.
    motion = torch.tensor([512, -256, 1024, 0], dtype=torch.int16).view(1, 1, 2, 2)
    assert normalize_motion(motion, TINY).flatten().tolist() == [1.0, -0.5, 1.0, 0.0]


def test_min_max_is_the_papers_wording_and_loses_magnitude() -> None:
    settings = replace(TINY, motion_norm="minmax")
    motion = torch.tensor([[16, 0, 16, 8], [160, 0, 160, 80], [5, 5, 5, 5]], dtype=torch.int16).view(3, 1, 2, 2)
    slow, fast, constant = normalize_motion(motion, settings).flatten(1).tolist()
    assert slow == fast == [1.0, -1.0, 1.0, 0.0]
    assert constant == [0.0, 0.0, 0.0, 0.0]


def test_arrays_of_another_model_side_are_refused() -> None:
    motion, residual = primitives(1)
    with pytest.raises(ValueError, match="do not fit a model side of 128 px"):
        encoder()(motion[:, :16, :16], residual)
    with pytest.raises(ValueError, match="do not fit"):
        encoder()(motion, residual[:, :64])
