"""The warp of Eq. 1 in integers, and the residual that it leaves: exact on every machine."""

# S = side of the model's square input, C = motion cells a side (a cell is S / C model pixels square).

from __future__ import annotations

import numba as nb
import numpy as np
import numpy.typing as npt

from cope_codec import lanes


@nb.njit(cache=True, nogil=True, error_model="numpy")
def _scale(motion, side, width, height, out):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """floor(motion * 4 * side / size + 1/2), within the picture.

    In double precision, where vector instructions divide: both numbers are below 2^31, so a quotient that is no integer
    is further from one than rounding can move it, and the floor is exact.
    """
    limit = min(16 * side, 32767)
    for i in range(motion.shape[0]):
        x = np.floor((8.0 * motion[i, 0] * side + width) / (2.0 * width))
        y = np.floor((8.0 * motion[i, 1] * side + height) / (2.0 * height))
        out[i, 0] = np.int16(min(max(x, -limit), limit))
        out[i, 1] = np.int16(min(max(y, -limit), limit))


def to_sixteenths(
    motion: npt.NDArray[np.int16], side: int, motion_width: int, motion_height: int
) -> npt.NDArray[np.int16]:
    """Scale motion from quarter source pixels to sixteenths of a model pixel, rounding halves up.

    Args:
        motion: int16 (..., 2), (x, y), quarter pixels of a `motion_width` x `motion_height` picture.
        side: S, the side of the model's square input, pixels.
        motion_width, motion_height: size of the picture that `motion` was measured on, pixels.

    Returns:
        int16 (..., 2), (x, y), sixteenths of a model pixel, within +-16 S and what 16 bits hold.
    """
    out = np.empty(motion.shape, np.int16)
    _scale(np.ascontiguousarray(motion).reshape(-1, 2), side, motion_width, motion_height, out.reshape(-1, 2))
    return out


@nb.njit(cache=True, nogil=True, error_model="numpy")
def _warp_residual(previous, current, motion, residual, choose):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """residual = current - warp(previous), with pictures as flat rows of interleaved RGB; see `residual_after_warp`.

    A strip of cells is warped into a buffer, then subtracted as a whole: one long loop over bytes. Within the picture
    a cell is interpolated 16 bytes at a time (`lanes`); cells that reach over the border, and the last of each row,
    behind which a strip has no 4 bytes to spare, go pixel by pixel.
    """
    side = motion.shape[0] * 4
    stride = 3 * side
    last = side - 1
    strip = np.empty(4 * stride, np.uint8)
    for cy in range(motion.shape[0]):
        y0 = cy * 4
        base = y0 * stride
        for cx in range(motion.shape[1]):
            x0 = cx * 4
            to = cx * 12
            wide = cx + 1 < motion.shape[1]
            mx = np.int32(motion[cy, cx, 0])
            my = np.int32(motion[cy, cx, 1])
            if mx == 0 and my == 0:
                _copy(previous, base + to, stride, strip, to, wide)
                continue
            ox, oy, u, v = mx >> 4, my >> 4, mx & 15, my & 15
            w00 = np.uint16((16 - u) * (16 - v))
            w01 = np.uint16(u * (16 - v))
            w10 = np.uint16((16 - u) * v)
            w11 = np.uint16(u * v)
            # 16 bytes and a pixel more: 19 bytes, of 7 pixels.
            if wide and x0 + ox >= 0 and y0 + oy >= 0 and x0 + ox + 7 <= side and y0 + oy + 4 < side:
                lanes.lerp_cell(previous, (y0 + oy) * stride + (x0 + ox) * 3, stride, w00, w01, w10, w11, strip, to)
            else:
                for y in range(4):
                    p = min(max(y0 + y + oy, 0), last) * stride
                    q = min(max(y0 + y + oy + 1, 0), last) * stride
                    for x in range(4):
                        left = min(max(x0 + x + ox, 0), last) * 3
                        right = min(max(x0 + x + ox + 1, 0), last) * 3
                        for c in range(3):
                            value = (
                                previous[p + left + c] * w00
                                + previous[p + right + c] * w01
                                + previous[q + left + c] * w10
                                + previous[q + right + c] * w11
                            )
                            strip[y * stride + to + 3 * x + c] = (value + 128) >> 8
            if choose:
                moved = _differ(current, base + to, strip, to, stride, wide)
                still = _differ(current, base + to, previous, base + to, stride, wide)
                if still < moved:
                    motion[cy, cx, 0] = 0
                    motion[cy, cx, 1] = 0
                    _copy(previous, base + to, stride, strip, to, wide)
        # Slices, so that the index cannot be negative as far as the compiler sees: else it finds no vectors here.
        now, out = current[base : base + 4 * stride], residual[base : base + 4 * stride]
        for i in range(4 * stride):
            out[i] = np.int16(now[i]) - np.int16(strip[i])


@nb.njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _copy(source, at, stride, out, to, wide):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    if wide:
        lanes.copy_cell(source, at, stride, out, to)
    else:
        for row in range(0, 4 * stride, stride):
            for i in range(12):
                out[to + row + i] = source[at + row + i]


@nb.njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _differ(one, at, other, to, stride, wide):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    if wide:
        return lanes.sad_cell(one, at, other, to, stride)
    total = np.int32(0)
    for row in range(0, 4 * stride, stride):
        for i in range(12):
            total += abs(np.int32(one[at + row + i]) - np.int32(other[to + row + i]))
    return total


def residual_after_warp(
    previous: npt.NDArray[np.uint8],
    current: npt.NDArray[np.uint8],
    motion: npt.NDArray[np.int16],
    out: npt.NDArray[np.int16] | None = None,
    *,
    drop_unhelpful: bool = False,
) -> npt.NDArray[np.int16]:
    """What warping leaves: `current - warp(previous, motion)` (Eq. 1), in one pass over the pixels.

    Args:
        previous, current: uint8 (S, S, 3), RGB.
        motion: int16 (C, C, 2), (x, y) = source minus destination, sixteenths of a model pixel.
        out: int16 (S, S, 3) to write into; a new array if None.
        drop_unhelpful: set vectors to zero, in `motion` itself, that explain their cell worse than no motion at all
            (sum of absolute differences). An encoder chooses vectors to save bits: in flat or repetitive places, and
            where a vector refers to another picture than the one before, following it leads away from the content.

    Returns:
        int16 (S, S, 3), in -255..255.

    Raises:
        ValueError: the motion is not one vector per 4 x 4 pixels, or an array is not contiguous.
    """
    side = len(current)
    if motion.shape != (side // 4, side // 4, 2) or previous.shape != current.shape:
        raise ValueError(
            f"motion is {motion.shape}, expected {(side // 4, side // 4, 2)} for pictures of {side} pixels"
        )
    if out is None:
        out = np.empty(current.shape, np.int16)
    for name, array in (("previous", previous), ("current", current), ("out", out)):
        if not array.flags.c_contiguous:
            raise ValueError(f"{name} must be contiguous")
    _warp_residual(previous.reshape(-1), current.reshape(-1), motion, out.reshape(-1), drop_unhelpful)
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
