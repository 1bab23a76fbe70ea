from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cope_codec import residual_after_warp, warp
from cope_codec.warp import to_sixteenths


def definition(previous: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """The warp as its docstring states it, pixel by pixel in Python integers."""
    side, cells = len(previous), len(motion)
    px = side // cells
    out = np.empty_like(previous)
    for y in range(side):
        for x in range(side):
            dx, dy = (int(d) for d in motion[y // px, x // px])
            x0, u = x + dx // 16, dx % 16
            y0, v = y + dy // 16, dy % 16
            xa, xb = (min(max(c, 0), side - 1) for c in (x0, x0 + 1))
            ya, yb = (min(max(c, 0), side - 1) for c in (y0, y0 + 1))
            p = previous.astype(int)
            total = (
                p[ya, xa] * (16 - u) * (16 - v)
                + p[ya, xb] * u * (16 - v)
                + p[yb, xa] * (16 - u) * v
                + p[yb, xb] * u * v
            )
            out[y, x] = (total + 128) >> 8
    return out


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([16, 100, 400]))
def test_warp_is_its_definition(seed: int, reach: int) -> None:
    random = np.random.default_rng(seed)
    previous = random.integers(0, 256, (16, 16, 3), np.uint8)
    motion = random.integers(-reach, reach + 1, (4, 4, 2)).astype(np.int16)
    np.testing.assert_array_equal(warp(previous, motion), definition(previous, motion))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_warp_plus_residual_is_the_next_picture(seed: int) -> None:
    random = np.random.default_rng(seed)
    previous, current = random.integers(0, 256, (2, 32, 32, 3), np.uint8)
    motion = random.integers(-300, 300, (8, 8, 2)).astype(np.int16)
    residual = residual_after_warp(previous, current, motion)
    np.testing.assert_array_equal(warp(previous, motion) + residual, current)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([20, 300]))
def test_only_vectors_that_do_not_help_are_dropped(seed: int, reach: int) -> None:
    random = np.random.default_rng(seed)
    previous = random.integers(0, 256, (32, 32, 3), np.uint8)
    given_motion = random.integers(-reach, reach + 1, (8, 8, 2)).astype(np.int16)
    current = warp(previous, given_motion)
    current[::2] = previous[::2]  # half of each cell stayed where it was, so that either side may win
    current = np.clip(current + random.integers(-40, 40, current.shape), 0, 255).astype(np.uint8)
    motion = given_motion.copy()
    residual = residual_after_warp(previous, current, motion, drop_unhelpful=True)
    np.testing.assert_array_equal(warp(previous, motion) + residual, current)

    def cost(picture: np.ndarray) -> np.ndarray:
        """Sum of absolute differences of each cell: (C, C)."""
        return abs(picture.astype(int) - current).reshape(8, 4, 8, 4, 3).sum((1, 3, 4))

    better_still = cost(previous) < cost(definition(previous, given_motion))
    np.testing.assert_array_equal(motion, np.where(better_still[..., None], 0, given_motion))


@settings(max_examples=200, deadline=None)
@given(st.integers(-32768, 32767), st.sampled_from([4, 128, 384, 2048]), st.integers(1, 16384))
def test_scaling_is_exact(quarters: int, side: int, size: int) -> None:
    expected = (8 * quarters * side + size) // (2 * size)
    limit = min(16 * side, 32767)
    expected = min(max(expected, -limit), limit)
    motion = np.array([quarters, quarters], np.int16)
    assert to_sixteenths(motion, side, size, size).tolist() == [expected, expected]


def test_pictures_must_be_contiguous() -> None:
    picture = np.zeros((16, 32, 3), np.uint8)[:, ::2]
    with pytest.raises(ValueError, match="previous must be contiguous"):
        warp(picture, np.zeros((4, 4, 2), np.int16))


def test_no_motion_changes_nothing() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    np.testing.assert_array_equal(warp(picture, np.zeros((6, 6, 2), np.int16)), picture)


def test_motion_points_to_where_the_content_was() -> None:
    picture = np.zeros((16, 16, 3), np.uint8)
    picture[4:8, 0:4] = 200  # a block at the left ...
    motion = np.zeros((4, 4, 2), np.int16)
    motion[1, 2] = (-8 * 16, 0)  # ... that the cell at x = 8 fetches from 8 pixels to its left
    assert (warp(picture, motion)[4:8, 8:12] == 200).all()


@pytest.mark.parametrize(
    ("quarters", "side", "width", "sixteenths"),
    [(4, 384, 384, 16), (4, 384, 768, 8), (-4, 384, 768, -8), (1, 384, 1536, 1), (3, 128, 640, 2), (-3, 128, 640, -2)],
)
def test_scaling_rounds_to_nearest(quarters: int, side: int, width: int, sixteenths: int) -> None:
    motion = np.array([quarters, 0], np.int16)
    assert to_sixteenths(motion, side, width, 100)[0] == sixteenths


def test_vectors_that_do_not_help_are_dropped_and_the_sum_stays_exact() -> None:
    random = np.random.default_rng(3)
    previous = random.integers(0, 256, (16, 16, 3), np.uint8)
    current = previous.copy()
    current[0:4, 4:8] = previous[0:4, 0:4]  # this cell came from its left neighbour; nothing else moved
    motion = np.full((4, 4, 2), (-4 * 16, 0), np.int16)
    residual = residual_after_warp(previous, current, motion, drop_unhelpful=True)
    expected = np.zeros((4, 4, 2), np.int16)
    expected[0, 1] = (-64, 0)
    np.testing.assert_array_equal(motion, expected)
    np.testing.assert_array_equal(warp(previous, motion) + residual, current)
    assert not residual.any()


def test_scaled_motion_stays_within_the_picture() -> None:
    far = np.array([32767, -32767], np.int16)
    assert to_sixteenths(far, 128, 64, 64).tolist() == [16 * 128, -16 * 128]
