import numpy as np
import pytest

from cope_codec import warp
from cope_training.primitives import Gop
from cope_training.views import View, layout_of, mirror, show


@pytest.fixture
def gop() -> Gop:
    random = np.random.default_rng(1)
    pictures = random.integers(0, 256, (8, 32, 32, 3), np.uint8)
    motion = random.integers(-90, 90, (8, 8, 8, 2), np.int16)
    motion[0] = 0
    return Gop((0, 1, 1, 1, 1, 1, 1, 1), pictures, motion, tuple(map(float, range(8))))


@pytest.mark.parametrize(("x", "y"), [(False, False), (True, False), (False, True), (True, True)])
def test_a_mirrored_clip_obeys_equation_1_and_its_residual_is_the_mirrored_one(gop: Gop, x: bool, y: bool) -> None:
    plain, shown = show(gop, View()), show(gop, View(flip_x=x, flip_y=y))
    mirrored = mirror(gop.pictures, gop.motion, x=x, y=y)[0]
    for p in range(7):
        assert np.array_equal(
            warp(np.ascontiguousarray(mirrored[p]), shown.motion[p]) + shown.residual[p], mirrored[p + 1]
        )
    axes = [axis for axis, wanted in ((2, x), (1, y)) if wanted]
    assert np.array_equal(shown.residual, np.flip(plain.residual, axes))


def test_keyframes_are_spread_as_the_codec_worker_spreads_them() -> None:
    extracted = (0, 1, 1, 1, 1, 1, 1, 1)
    assert layout_of(extracted, None) == extracted
    assert layout_of(extracted, 2) == (0, 1, 1, 1, 0, 1, 1, 1)
    assert layout_of(extracted, 4) == (0, 1, 0, 1, 0, 1, 0, 1)
    assert layout_of(extracted[:3], 4) == (0, 1, 0)


def test_ablations_take_away_what_their_names_say(gop: Gop) -> None:
    assert show(gop, View(deltas="zeroed")).kept == (0.0, 0.0)
    assert show(gop, View(deltas="motion")).kept == (1.0, 0.0)
    assert show(gop, View(deltas="residual")).kept == (0.0, 1.0)
    alone = show(gop, View(4, deltas="none"))
    assert alone.layout == (0, 0, 0, 0)
    assert len(alone.motion) == len(alone.residual) == 0
    assert np.array_equal(alone.keyframes, gop.pictures[::2])
