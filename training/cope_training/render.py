"""Draws scenes: pictures, and for each patch of a picture which colour and shape covers it."""

# H, W picture size (px); N things; M side of a texture (texels).

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterator

import numba as nb
import numpy as np
import numpy.typing as npt

from cope_training import textures
from cope_training.scenes import COLOURS, REFERENCE_PX, SHAPES, Scene

Picture = npt.NDArray[np.uint8]
_GRAIN = 64  # cuts of the grain a side
_THING = 9  # x, y, scale, cos, sin, radius, shape, texture x, texture y
_DARKEST = 0.45  # of a thing's colour, where its texture is darkest: a motion search needs something to hold on to


@nb.njit(cache=True, nogil=True, inline="always")
def _distance(shape, x, y, r):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Signed distance (roughly) to the outline of a shape around the origin, negative inside."""
    if shape == 0:
        return math.sqrt(x * x + y * y) - r
    if shape == 1:
        return max(abs(x), abs(y)) - 0.84 * r
    if shape == 2:
        return max(y, max(0.866 * x - 0.5 * y, -0.866 * x - 0.5 * y)) - 0.56 * r
    ax, ay = abs(x), abs(y)
    return min(max(ax - r, ay - 0.34 * r), max(ax - 0.34 * r, ay - r))


@nb.njit(cache=True, nogil=True, fastmath=True)
def _draw(texture, tint, contrast, camera, things, colours, out, owner):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Fill `out` (H, W, 3) and `owner` (H, W): the index of the uppermost thing of a pixel, or -1."""
    height, width = out.shape[:2]
    wrap = texture.shape[0] - 1  # the side is a power of two
    shift_x, shift_y, scale, cos, sin = camera[0], camera[1], camera[2], camera[3], camera[4]
    pixel = 128.0 / max(height, width)
    for i in range(height):
        y = (i + 0.5) * 128.0 / height - 64.0
        for j in range(width):
            x = (j + 0.5) * 128.0 / width - 64.0
            wx = (cos * x + sin * y) / scale + 64.0 - shift_x
            wy = (cos * y - sin * x) / scale + 64.0 - shift_y
            fx, fy = math.floor(wx), math.floor(wy)
            u, v = wx - fx, wy - fy
            x0, y0 = int(fx) & wrap, int(fy) & wrap
            x1, y1 = (x0 + 1) & wrap, (y0 + 1) & wrap
            a, b, c, d = (1 - u) * (1 - v), u * (1 - v), (1 - u) * v, u * v
            for k in range(3):
                value = (
                    texture[y0, x0, k] * a + texture[y0, x1, k] * b + texture[y1, x0, k] * c + texture[y1, x1, k] * d
                )
                out[i, j, k] = tint[k] + (value - 0.5) * contrast
            owner[i, j] = -1
            for n in range(things.shape[0]):
                dx, dy = wx - things[n, 0], wy - things[n, 1]
                r = things[n, 5] * things[n, 2]
                if abs(dx) > 1.3 * r or abs(dy) > 1.3 * r:
                    continue
                lx = (things[n, 3] * dx + things[n, 4] * dy) / things[n, 2]
                ly = (things[n, 3] * dy - things[n, 4] * dx) / things[n, 2]
                outside = _distance(int(things[n, 6]), lx, ly, things[n, 5]) * things[n, 2] * scale / pixel
                cover = min(max(0.5 - outside, 0.0), 1.0)
                if cover <= 0.0:
                    continue
                tx, ty = int(lx + things[n, 7]) & wrap, int(ly + things[n, 8]) & wrap
                shade = _DARKEST + (1 - _DARKEST) * (texture[ty, tx, 0] + texture[ty, tx, 1] + texture[ty, tx, 2]) / 3.0
                for k in range(3):
                    out[i, j, k] = out[i, j, k] * (1 - cover) + colours[n, k] * shade * cover
                if cover > 0.5:
                    owner[i, j] = n


class Renderer:
    """Draws one scene at any time.

    Args:
        scene: what to draw.
        width, height: picture size, pixels.
    """

    def __init__(self, scene: Scene, width: int, height: int) -> None:
        self._scene = scene
        self._texture = textures.make(scene.family, scene.texture_seed)
        self._size = (height, width)
        random = np.random.default_rng(scene.texture_seed + 1)
        self._grain = random.normal(0.0, scene.grain, (height + _GRAIN, width + _GRAIN, 1)).astype(np.float32)
        self._tint = np.array(scene.tint, np.float64)
        self._colours = np.array([_rgb(COLOURS[thing.colour] + thing.hue_shift) for thing in scene.things]).reshape(
            -1, 3
        )

    def draw(self, t: float) -> tuple[Picture, npt.NDArray[np.int32]]:
        """The picture at time `t` (s), uint8 (H, W, 3) RGB, and int32 (H, W): index of the thing seen there, or -1."""
        scene = self._scene
        out = np.empty((*self._size, 3), np.float32)
        owner = np.empty(self._size, np.int32)
        roll = scene.roll * t
        camera = np.array(
            [scene.pan[0] * t, scene.pan[1] * t, math.exp(scene.zoom * t), math.cos(roll), math.sin(roll)]
        )
        seen = [n for n, thing in enumerate(scene.things) if thing.from_s <= t < thing.until_s]
        rows = np.zeros((len(seen), _THING))
        for row, n in zip(rows, seen, strict=True):
            thing = scene.things[n]
            angle = thing.angle + thing.spin * t
            row[:2] = thing.place(t)
            row[2:6] = math.exp(thing.growth * t), math.cos(angle), math.sin(angle), thing.radius
            row[6:] = SHAPES.index(thing.shape), *(at + 64 for at in thing.texture_at)
        _draw(self._texture, self._tint, scene.contrast, camera, rows, self._colours[seen], out, owner)
        if scene.grain:
            down, right = (int(t * 997) % _GRAIN, int(t * 613) % _GRAIN)  # another cut of it for every picture
            out += self._grain[down : down + self._size[0], right : right + self._size[1]]
        index = np.array([*seen, -1], np.int32)  # owner -1 reads the last entry
        return np.clip(out, 0, 255).astype(np.uint8), index[owner]

    def pictures(self, seconds: float, fps: float) -> Iterator[Picture]:
        """All pictures of a clip, in order."""
        for number in range(round(seconds * fps)):
            yield self.draw(number / fps)[0]


def _rgb(hue: float) -> tuple[float, float, float]:
    """A bright colour of that hue (degrees): RGB 0..255."""
    red, green, blue = colorsys.hsv_to_rgb((hue % 360) / 360, 0.92, 1.0)
    return 255 * red, 255 * green, 255 * blue


def patch_labels(scene: Scene, owner: npt.NDArray[np.int32], patch: int) -> npt.NDArray[np.int64]:
    """Which colour and shape most of each patch shows.

    Args:
        scene: the scene that was drawn.
        owner: int32 (S, S) from `Renderer.draw`.
        patch: side of a patch, pixels.

    Returns:
        int64 (g * g, 2): colour and shape, 0 for the world, else 1 + the position in `COLOURS` and `SHAPES`.
    """
    colours = list(COLOURS)
    table = np.array(
        [(colours.index(thing.colour) + 1, SHAPES.index(thing.shape) + 1) for thing in scene.things] + [(0, 0)],
        np.int64,
    )
    labels: npt.NDArray[np.int64] = table[_covering(scene, owner, patch)]
    return labels


def patch_centres(scene: Scene, owner: npt.NDArray[np.int32], patch: int) -> npt.NDArray[np.float32]:
    """Where the thing is that most of each patch shows.

    Args:
        scene, owner, patch: see `patch_labels`.

    Returns:
        float32 (g * g, 2): (x, y) of the middle of what is seen of the thing, -1..1 from left to right and from top to
        bottom; 0 for the world.
    """
    centres = np.zeros((len(scene.things) + 1, 2), np.float32)
    for n in range(len(scene.things)):
        rows, columns = np.nonzero(owner == n)
        if len(rows):
            centres[n] = columns.mean(), rows.mean()
            centres[n] = centres[n] * 2 / (np.array(owner.shape[::-1]) - 1) - 1
    where: npt.NDArray[np.float32] = centres[_covering(scene, owner, patch)]
    return where


def _covering(scene: Scene, owner: npt.NDArray[np.int32], patch: int) -> npt.NDArray[np.int64]:
    """Index of the thing that most of each patch shows, int64 (g * g,); the number of things for the world."""
    g = owner.shape[0] // patch
    blocks = owner[: g * patch, : g * patch].reshape(g, patch, g, patch).transpose(0, 2, 1, 3).reshape(g * g, -1)
    counts = np.stack([(blocks == n).sum(1) for n in (*range(len(scene.things)), -1)])
    out: npt.NDArray[np.int64] = counts.argmax(0)
    return out


assert REFERENCE_PX == 128  # `_draw` has the number built in
