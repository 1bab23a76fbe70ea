"""The warp of Eq. 1 in integers, and the residual that it leaves: exact on every machine."""

# S = side of the model's square input, C = motion cells a side (a cell is S / C model pixels square).

from __future__ import annotations

import numba as nb
import numpy as np
import numpy.typing as npt


@nb.njit(cache=True, nogil=True, error_model="numpy")
def _scale(motion, side, width, height, out):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """floor(motion * 4 * side / size + 1/2), within the picture."""
    limit = 16 * side
    for i in range(motion.shape[0]):
        x = (8 * np.int64(motion[i, 0]) * side + width) // (2 * width)
        y = (8 * np.int64(motion[i, 1]) * side + height) // (2 * height)
        out[i, 0] = min(max(x, -limit), limit)
        out[i, 1] = min(max(y, -limit), limit)


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
    out = np.empty(motion.shape, np.int16)
    _scale(np.ascontiguousarray(motion).reshape(-1, 2), side, motion_width, motion_height, out.reshape(-1, 2))
    return out


@nb.njit(cache=True, nogil=True, error_model="numpy")
def _warp_residual(previous, current, motion, residual):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """residual = current - warp(previous), with pictures as (S, 3 S) rows of interleaved RGB.

    Cells that fetch whole pixels, cells that interpolate and cells at the border go separate ways, and the loops over
    a cell's row of 4 pixels x 3 colours have a fixed length: the compiler makes vector instructions of them.
    """
    side = previous.shape[0]
    last = side - 1
    for cy in range(motion.shape[0]):
        y0 = cy * 4
        for cx in range(motion.shape[1]):
            x0 = cx * 4
            to = x0 * 3
            ox = np.int32(motion[cy, cx, 0]) >> 4
            oy = np.int32(motion[cy, cx, 1]) >> 4
            u = np.int32(motion[cy, cx, 0]) & 15
            v = np.int32(motion[cy, cx, 1]) & 15
            w00 = (16 - u) * (16 - v)
            w01 = u * (16 - v)
            w10 = (16 - u) * v
            w11 = u * v
            if x0 + ox >= 0 and y0 + oy >= 0 and x0 + ox + 4 < side and y0 + oy + 4 < side:
                at = (x0 + ox) * 3
                for y in range(y0, y0 + 4):
                    p, q = previous[y + oy], previous[y + oy + 1]
                    now, out = current[y], residual[y]
                    if u == 0 and v == 0:
                        for j in range(12):
                            out[to + j] = np.int16(now[to + j]) - np.int16(p[at + j])
                    else:
                        for j in range(12):
                            value = p[at + j] * w00 + p[at + 3 + j] * w01 + q[at + j] * w10 + q[at + 3 + j] * w11
                            out[to + j] = np.int16(now[to + j]) - np.int16((value + 128) >> 8)
            else:
                for y in range(y0, y0 + 4):
                    p, q = previous[min(max(y + oy, 0), last)], previous[min(max(y + oy + 1, 0), last)]
                    now, out = current[y], residual[y]
                    for x in range(x0, x0 + 4):
                        left = min(max(x + ox, 0), last) * 3
                        right = min(max(x + ox + 1, 0), last) * 3
                        for c in range(3):
                            value = p[left + c] * w00 + p[right + c] * w01 + q[left + c] * w10 + q[right + c] * w11
                            out[3 * x + c] = np.int16(now[3 * x + c]) - np.int16((value + 128) >> 8)


@nb.njit(cache=True, nogil=True, error_model="numpy")
def _unhelpful(previous, current, motion, residual):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Zero the motion, and mend the residual, of cells that differ less from where they are than from their source."""
    for cy in range(motion.shape[0]):
        for cx in range(motion.shape[1]):
            if motion[cy, cx, 0] == 0 and motion[cy, cx, 1] == 0:
                continue
            to = cx * 12
            moved = np.int32(0)
            still = np.int32(0)
            for y in range(cy * 4, cy * 4 + 4):
                before, now, out = previous[y], current[y], residual[y]
                for j in range(12):
                    moved += abs(np.int32(out[to + j]))
                    still += abs(np.int32(now[to + j]) - np.int32(before[to + j]))
            if still < moved:
                motion[cy, cx, 0] = 0
                motion[cy, cx, 1] = 0
                for y in range(cy * 4, cy * 4 + 4):
                    before, now, out = previous[y], current[y], residual[y]
                    for j in range(12):
                        out[to + j] = np.int16(now[to + j]) - np.int16(before[to + j])


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

    Raises:
        ValueError: the motion is not one vector per 4 x 4 pixels, or `out` is not contiguous.
    """
    side = len(current)
    if motion.shape != (side // 4, side // 4, 2):
        raise ValueError(
            f"motion is {motion.shape}, expected {(side // 4, side // 4, 2)} for pictures of {side} pixels"
        )
    if out is None:
        out = np.empty(current.shape, np.int16)
    if not out.flags.c_contiguous:
        raise ValueError("out must be contiguous")
    rows = (side, 3 * side)
    _warp_residual(previous.reshape(rows), current.reshape(rows), motion, out.reshape(rows))
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


def drop_unhelpful_motion(
    previous: npt.NDArray[np.uint8],
    current: npt.NDArray[np.uint8],
    motion: npt.NDArray[np.int16],
    residual: npt.NDArray[np.int16],
) -> None:
    """Forget vectors that explain a cell worse than no motion at all; Eq. 1 still holds afterwards.

    An encoder chooses vectors to save bits. In flat or repetitive places, and where a vector refers to another picture
    than the one before, following it leads away from the content.

    Args:
        previous, current: uint8 (S, S, 3), RGB.
        motion: int16 (C, C, 2), sixteenths of a model pixel; changed in place.
        residual: int16 (S, S, 3), contiguous, what `motion` leaves; changed in place.
    """
    rows = (len(current), 3 * len(current))
    _unhelpful(previous.reshape(rows), current.reshape(rows), motion, residual.reshape(rows))
