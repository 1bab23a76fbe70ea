"""Seamless textures in families; scenes that a model is tested on use families that it never saw in training."""

# M = side of a texture, texels.

from __future__ import annotations

from collections.abc import Callable

import numba as nb
import numpy as np
import numpy.typing as npt

Texture = npt.NDArray[np.float32]
_PALE = 0.7  # 1 is grey
SIDE = 256  # M, a power of two; a texel is one pixel of the scene's 128 x 128 reference picture


@nb.njit(cache=True, nogil=True)
def _noise(lattice, out, weight):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Add bilinear noise on a periodic lattice (n, n, 3), times `weight`, to `out` (M, M, 3)."""
    n = lattice.shape[0]
    side = out.shape[0]
    for i in range(side):
        y = i * n / side
        y0 = int(y)
        v = np.float32(y - y0)
        y1 = (y0 + 1) % n
        for j in range(side):
            x = j * n / side
            x0 = int(x)
            u = np.float32(x - x0)
            x1 = (x0 + 1) % n
            for c in range(3):
                top = lattice[y0, x0, c] * (1 - u) + lattice[y0, x1, c] * u
                bottom = lattice[y1, x0, c] * (1 - u) + lattice[y1, x1, c] * u
                out[i, j, c] += weight * (top * (1 - v) + bottom * v)


@nb.njit(cache=True, nogil=True)
def _nearest(points, side):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Index of the nearest point on a torus, for every texel: int32 (M, M)."""
    out = np.empty((side, side), np.int32)
    for i in range(side):
        for j in range(side):
            best, chosen = np.float32(1e9), 0
            for k in range(points.shape[0]):
                dy, dx = abs(points[k, 0] - i), abs(points[k, 1] - j)
                dy, dx = min(dy, side - dy), min(dx, side - dx)
                distance = dy * dy + dx * dx
                if distance < best:
                    best, chosen = distance, k
            out[i, j] = chosen
    return out


def _layers(random: np.random.Generator, *layers: tuple[int, float]) -> Texture:
    """Noise of several scales: (lattice cells a side, weight) each."""
    out = np.zeros((SIDE, SIDE, 3), np.float32)
    for cells, weight in layers:
        _noise(random.random((cells, cells, 3), np.float32), out, np.float32(weight))
    return out


def _clouds(random: np.random.Generator) -> Texture:
    return _layers(random, (8, 0.3), (16, 0.3), (32, 0.25), (64, 0.15))


def _gravel(random: np.random.Generator) -> Texture:
    return _layers(random, (16, 0.15), (32, 0.35), (64, 0.5))


def _blotches(random: np.random.Generator) -> Texture:
    base = _layers(random, (12, 0.5), (24, 0.5))
    return np.asarray(np.floor(base * 5) / 5 + _layers(random, (48, 0.3)), np.float32)


def _cobbles(random: np.random.Generator) -> Texture:
    owner = _nearest((random.random((90, 2)) * SIDE).astype(np.float32), SIDE)
    stones: Texture = random.random((90, 3), np.float32)[owner] * np.float32(0.7)
    return stones + _layers(random, (48, 0.3))


def _marble(random: np.random.Generator) -> Texture:
    warp = _layers(random, (6, 0.6), (12, 0.4))
    ramp = np.arange(SIDE, dtype=np.float32)[:, None, None] / SIDE
    veins = np.sin(2 * np.pi * (4 * ramp + 3 * warp)) * 0.35
    return np.asarray(veins + _layers(random, (24, 0.3), (64, 0.3)), np.float32)


_FAMILIES: dict[str, Callable[[np.random.Generator], Texture]] = {
    "clouds": _clouds,
    "gravel": _gravel,
    "blotches": _blotches,
    "cobbles": _cobbles,
    "marble": _marble,
}
TRAINING_FAMILIES = ("clouds", "gravel", "blotches")
HELD_OUT_FAMILIES = ("cobbles", "marble")


def make(family: str, seed: int) -> Texture:
    """A texture without seams, so that a camera can move over it for ever.

    Args:
        family: one of `TRAINING_FAMILIES` and `HELD_OUT_FAMILIES`.
        seed: other seeds give other textures.

    Returns:
        float32 (M, M, 3) in 0..1, the whole range used, pale.
    """
    out = _FAMILIES[family](np.random.default_rng(seed))
    out = _PALE * out.mean(2, keepdims=True) + (1 - _PALE) * out  # coloured things shall stand out
    low, high = out.min(), out.max()
    return np.asarray((out - low) / (high - low), np.float32)
