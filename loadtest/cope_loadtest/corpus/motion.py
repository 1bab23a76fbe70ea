"""Draws the pictures of a clip."""

# H, W picture size (px); M side of a texture (texels).

from __future__ import annotations

import math
from collections.abc import Iterator

import numba as nb
import numpy as np
import numpy.typing as npt

from cope_codec import samples
from cope_loadtest.corpus.spec import ClipSpec
from cope_training import textures
from cope_training.render import Renderer
from cope_training.scenes import COLOURS, SHAPES, Leg, Scene, Thing

Picture = npt.NDArray[np.uint8]
_OCTAVES = 4
_FAR = np.float32(64 * textures.SIDE)
_DOUBLES_S = 4.0  # a zooming picture's content doubles in this time
_SPRITES = 5
_LEG_S = 2.0
_GRAIN = 4  # grey levels


def draw(spec: ClipSpec, motion: str, seed: int) -> Iterator[Picture]:
    """The pictures of a clip, in order: uint8 (H, W, 3), RGB.

    Args:
        spec: size, rate and length.
        motion: one of `MOTIONS`.
        seed: other seeds give other pictures.
    """
    random = np.random.default_rng(seed)
    if motion == "zoom":
        return _zoom(spec, random)
    if motion == "sprites":
        return Renderer(_sprites(spec.seconds, random), spec.width, spec.height).pictures(spec.seconds, spec.fps)
    angle = random.uniform(0, 2 * math.pi)
    speed = spec.width * random.uniform(0.08, 0.2)  # pixels per second
    return samples.scene(
        spec.width,
        spec.height,
        spec.seconds,
        spec.fps,
        pan_px_s=(speed * math.cos(angle), speed * math.sin(angle)),
        disc=motion == "pan",
        noise=_GRAIN if motion == "noise" else 0,
        seed=int(random.integers(1 << 31)),
    )


def _zoom(spec: ClipSpec, random: np.random.Generator) -> Iterator[Picture]:
    """Into a texture that repeats itself at half the size: each octave grows, and fades out as it gets large."""
    texture = textures.make(str(random.choice(textures.TRAINING_FAMILIES)), int(random.integers(1 << 31)))
    shifts = random.random((_OCTAVES + 1, 2)).astype(np.float32) * textures.SIDE
    out = np.empty((spec.height, spec.width, 3), np.uint8)
    for number in range(round(spec.seconds * spec.fps)):
        grown = number / spec.fps / _DOUBLES_S
        _draw_octaves(texture, shifts, np.float32(grown % 1.0), int(grown), out)
        yield out.copy()


@nb.njit(cache=True, nogil=True, fastmath=True)
def _draw_octaves(texture, shifts, fraction, turn, out):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Sum the octaves of a texture (M, M, 3) at scales 2 ** (octave - fraction) into `out` (H, W, 3)."""
    height, width = out.shape[:2]
    wrap = texture.shape[0] - 1  # the side is a power of two
    count = shifts.shape[0] - 1
    weights, scales = np.empty(count, np.float32), np.empty(count, np.float32)
    total = np.float32(0)
    for k in range(count):
        # An octave comes in small and weak, is strongest in the middle, and leaves large and weak.
        age = k + np.float32(1) - fraction
        weights[k] = math.sin(math.pi * age / count) ** 2
        scales[k] = np.float32(0.125) * np.float32(2.0) ** age
        total += weights[k]
    value = np.empty(3, np.float32)
    for i in range(height):
        for j in range(width):
            value[:] = 0
            for k in range(count):
                which = (k + turn) % count
                # Far from zero, so that cutting off the fraction always rounds down.
                y = (i - height * np.float32(0.5)) * scales[k] + shifts[which, 0] + _FAR
                x = (j - width * np.float32(0.5)) * scales[k] + shifts[which, 1] + _FAR
                y0, x0 = np.int32(y), np.int32(x)
                v, u = y - np.float32(y0), x - np.float32(x0)
                ya, xa = y0 & wrap, x0 & wrap
                yb, xb = (ya + 1) & wrap, (xa + 1) & wrap
                for c in range(3):
                    top = texture[ya, xa, c] * (1 - u) + texture[ya, xb, c] * u
                    bottom = texture[yb, xa, c] * (1 - u) + texture[yb, xb, c] * u
                    value[c] += weights[k] * (top * (1 - v) + bottom * v)
            for c in range(3):
                # Sums of textures are grey: twice the contrast around the middle.
                bright = (value[c] / total - np.float32(0.5)) * 2 + np.float32(0.5)
                out[i, j, c] = min(max(bright, np.float32(0)), np.float32(1)) * 255


def _sprites(seconds: float, random: np.random.Generator) -> Scene:
    """Things that set out for another place every two seconds, before a background that drifts."""
    colours = list(COLOURS)
    things = []
    for _ in range(_SPRITES):
        start = random.uniform(24, 104, 2)
        place, legs = start, []
        for number in range(math.ceil(seconds / _LEG_S)):
            to = random.uniform(24, 104, 2)
            velocity = (to - place) / _LEG_S
            legs.append(Leg(number * _LEG_S, (number + 1) * _LEG_S, float(velocity[0]), float(velocity[1])))
            place = to
        things.append(
            Thing(
                colour=colours[int(random.integers(len(colours)))],
                shape=SHAPES[int(random.integers(len(SHAPES)))],
                radius=float(random.uniform(9, 18)),
                x=float(start[0]),
                y=float(start[1]),
                spin=float(random.uniform(-1.5, 1.5)),
                texture_at=(float(random.uniform(0, 64)), float(random.uniform(0, 64))),
                legs=tuple(legs),
            )
        )
    return Scene(
        family=str(random.choice(textures.TRAINING_FAMILIES)),
        texture_seed=int(random.integers(1 << 31)),
        tint=(110.0, 120.0, 115.0),
        contrast=140.0,
        grain=0.0,
        things=tuple(things),
        pan=(float(random.uniform(-3, 3)), float(random.uniform(-3, 3))),
    )
