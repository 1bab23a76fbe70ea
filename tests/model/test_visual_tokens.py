"""Pixels to pooled tokens, and the order of tokens within a GOP."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from cope_model.frames import normalize_keyframes, pool_frames
from cope_model.images import to_square
from cope_model.interleave import close_groups, interleave, interleave_gops

NEWLINE = torch.tensor([-1.0])


def test_pixels_become_minus_one_to_one_channels_first() -> None:
    keyframe = torch.tensor([0, 51, 255], dtype=torch.uint8).expand(1, 2, 2, 3)
    out = normalize_keyframes(keyframe, torch.float32)
    assert out.shape == (1, 3, 2, 2)
    torch.testing.assert_close(out[0, :, 0, 0], torch.tensor([-1.0, -0.6, 1.0]))


@pytest.mark.parametrize("mode", ["bilinear", "average"])
def test_pooling_by_two_takes_means_and_ends_rows(mode: str) -> None:
    features = torch.arange(16.0).view(1, 16, 1)  # 4 x 4 patches
    assert pool_frames(features, NEWLINE, 2, mode).flatten().tolist() == [2.5, 4.5, -1.0, 10.5, 12.5, -1.0]


def test_odd_grids_lose_their_remainder_on_average_and_keep_it_when_bilinear() -> None:
    features = torch.arange(9.0).view(1, 9, 1)  # 3 x 3 patches
    assert pool_frames(features, NEWLINE, 2, "average").flatten().tolist() == [2.0, -1.0]
    # Bilinear samples at 0.25 and 1.75 between the patches' centres, as LLaVA-Video does.
    bilinear = pool_frames(features, NEWLINE, 2, "bilinear").flatten().tolist()
    assert bilinear == [1.0, 2.5, -1.0, 5.5, 7.0, -1.0]


@pytest.mark.parametrize(("mode", "rows"), [("bilinear", 14), ("average", 13)])
def test_27_patches_become_rows_with_a_newline(mode: str, rows: int) -> None:
    out = pool_frames(torch.randn(2, 27 * 27, 3), torch.full((3,), 9.0), 2, mode)
    assert out.shape == (2, rows * (rows + 1), 3)
    assert (out[:, rows :: rows + 1] == 9.0).all()


def test_p_frames_are_motion_newline_residual_newline() -> None:
    deltas = torch.arange(8.0).view(1, 8, 1)
    assert close_groups(deltas, NEWLINE).flatten().tolist() == [0, 1, 2, 3, -1, 4, 5, 6, 7, -1]
    assert close_groups(deltas[:0], NEWLINE).shape == (0, 10, 1)


def test_slots_are_put_in_time_order() -> None:
    i_tokens = torch.tensor([[10.0, 11.0], [20.0, 21.0]]).unsqueeze(-1)
    p_tokens = torch.tensor([[1.0], [2.0], [3.0]]).unsqueeze(-1)
    assert interleave([0, 1, 1, 0, 1], i_tokens, p_tokens).flatten().tolist() == [10, 11, 1, 2, 20, 21, 3]
    first, second = interleave_gops([[0, 1], [0, 1, 1]], i_tokens, p_tokens)
    assert first.flatten().tolist() == [10, 11, 1]
    assert second.flatten().tolist() == [20, 21, 2, 3]


def test_layouts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="1 I and 1 P slots, but 2 keyframes and 1 P-frames"):
        interleave([0, 1], torch.zeros(2, 2, 1), torch.zeros(1, 1, 1))


def test_images_are_stretched_to_the_square() -> None:
    image = Image.new("RGBA", (40, 20), (200, 100, 50, 255))
    assert (to_square(image, 8) == np.array([200, 100, 50], np.uint8)).all()
    assert (to_square(np.full((3, 6, 9), 7, np.uint8), 8) == 7).all()
    assert (to_square(np.full((6, 9), 7, np.uint8), 8) == 7).all()
    assert to_square(torch.zeros(6, 9, 3, dtype=torch.uint8), 8).shape == (8, 8, 3)
    with pytest.raises(ValueError, match=r"not \(2, 2\, 2\, 3\)"):
        to_square(np.zeros((2, 2, 2, 3), np.uint8), 8)
