"""The warp of Eq. 1 in integers, and the residual that it leaves: exact on every machine."""

# S = side of the model's square input, C = motion cells a side (a cell is S / C model pixels square).

from __future__ import annotations

import numba as nb
import numpy as np
import numpy.typing as npt

_SUBPEL = 16  # a displacement counts sixteenths of a model pixel


def to_sixteenths(
    motion: npt.NDArray[np.int16], side: int, motion_width: int, motion_height: int
) -> npt.NDArray[np.int16]:
    """Scale motion from quarter source pixels to sixteenths of a model pixel, rounding halves up.

    Args:
        motion: int16 (..., 2), (x, y), quarter pixels of a `motion_width` x `motion_height` picture.
        side: S, the side of the model's square input, pixels.
        motion_width, motion_height: size of the picture that `motion` was measured on, pixels.

    Returns:
        int16 (..., 2), (x, y), sixteenths of a model pixel, within +-16 S.
    """
    size = np.array([motion_width, motion_height], np.int64)
    wide = motion.astype(np.int64)
    scaled = (2 * wide * (_SUBPEL // 4) * side + size) // (2 * size)
    return np.clip(scaled, -_SUBPEL * side, _SUBPEL * side).astype(np.int16)


@nb.njit(cache=True, nogil=True, error_model="numpy")
def _warp_residual(previous, current, motion, residual):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """residual = current - warp(previous); the bulk of a P slot's time, hence the three cases by cost."""
    side = previous.shape[0]
    cells = motion.shape[0]
    px = side // cells
    for cy in range(cells):
        for cx in range(cells):
            dx = np.int32(motion[cy, cx, 0])
            dy = np.int32(motion[cy, cx, 1])
            ox = dx >> 4
            oy = dy >> 4
            u = dx & 15
            v = dy & 15
            x0 = cx * px
            y0 = cy * px
            inside = x0 + ox >= 0 and y0 + oy >= 0 and x0 + ox + px < side and y0 + oy + px < side
            if inside and u == 0 and v == 0:
                for y in range(y0, y0 + px):
                    for x in range(x0, x0 + px):
                        for c in range(3):
                            residual[y, x, c] = np.int16(current[y, x, c]) - np.int16(previous[y + oy, x + ox, c])
                continue
            w00 = (16 - u) * (16 - v)
            w01 = u * (16 - v)
            w10 = (16 - u) * v
            w11 = u * v
            if inside:
                for y in range(y0, y0 + px):
                    for x in range(x0, x0 + px):
                        for c in range(3):
                            value = (
                                previous[y + oy, x + ox, c] * w00
                                + previous[y + oy, x + ox + 1, c] * w01
                                + previous[y + oy + 1, x + ox, c] * w10
                                + previous[y + oy + 1, x + ox + 1, c] * w11
                                + 128
                            ) >> 8
                            residual[y, x, c] = np.int16(current[y, x, c]) - np.int16(value)
            else:
                for y in range(y0, y0 + px):
                    ya = min(max(y + oy, 0), side - 1)
                    yb = min(max(y + oy + 1, 0), side - 1)
                    for x in range(x0, x0 + px):
                        xa = min(max(x + ox, 0), side - 1)
                        xb = min(max(x + ox + 1, 0), side - 1)
                        for c in range(3):
                            value = (
                                previous[ya, xa, c] * w00
                                + previous[ya, xb, c] * w01
                                + previous[yb, xa, c] * w10
                                + previous[yb, xb, c] * w11
                                + 128
                            ) >> 8
                            residual[y, x, c] = np.int16(current[y, x, c]) - np.int16(value)


def residual_after_warp(
    previous: npt.NDArray[np.uint8],
    current: npt.NDArray[np.uint8],
    motion: npt.NDArray[np.int16],
    out: npt.NDArray[np.int16] | None = None,
) -> npt.NDArray[np.int16]:
    """What warping leaves: `current - warp(previous, motion)` (Eq. 1), in one pass over the pixels.

    Args:
        previous, current: uint8 (S, S, 3), RGB.
        motion: int16 (C, C, 2), (x, y) = source minus destination, sixteenths of a model pixel.
        out: int16 (S, S, 3) to write into; a new array if None.

    Returns:
        int16 (S, S, 3), in -255..255.
    """
    if out is None:
        out = np.empty(current.shape, np.int16)
    _warp_residual(previous, current, motion, out)
    return out


def warp(previous: npt.NDArray[np.uint8], motion: npt.NDArray[np.int16]) -> npt.NDArray[np.uint8]:
    """Fetch every cell from where it was: bilinear in sixteenths, borders repeated, rounded to nearest.

    With d = motion of the cell that holds pixel i, o = floor(d / 16) and (u, v) = d mod 16, the result at i is
    `(p00 (16-u)(16-v) + p01 u (16-v) + p10 (16-u) v + p11 u v + 128) >> 8`, p.. being the four pixels around i + o
    with coordinates clamped to the picture.

    Args:
        previous: uint8 (S, S, 3), RGB.
        motion: int16 (C, C, 2), (x, y) = source minus destination, sixteenths of a model pixel.

    Returns:
        uint8 (S, S, 3), RGB.
    """
    zero = np.zeros(previous.shape, np.uint8)
    return (-residual_after_warp(previous, zero, motion)).astype(np.uint8)
