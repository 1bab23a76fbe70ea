"""Still images on their way to the vision encoder: decoded, RGB, stretched to the model's square."""

# S = side of the model's square input.

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

# An image of so many pixels takes 100 MB and more while it is decoded. Cameras make such, and so does a file of a few
# kilobytes.
_MANY_PIXELS = 1 << 24
_one_at_a_time = threading.Lock()


@contextmanager
def decoding(data: bytes) -> Iterator[None]:
    """Decode an image within the block: large ones one after the other, all others at once.

    Args:
        data: the image's file; what is none is let pass, its decoder will say so.
    """
    from vllm.multimodal.image import open_image  # only the formats that vLLM holds for harmless

    try:
        with open_image(io.BytesIO(data)) as image:
            large = image.width * image.height > _MANY_PIXELS
    except Exception:  # noqa: BLE001 - Pillow's readers raise anything; also for images that are too large for it
        large = False
    if not large:
        yield
        return
    with _one_at_a_time:
        yield


def to_square(image: Any, side: int) -> npt.NDArray[np.uint8]:
    """Turn an image into what keyframes are: uint8 (S, S, 3), RGB, stretched as SigLIP's own processor does.

    Args:
        image: a PIL image, or an array (H, W), (H, W, 3), (H, W, 4) or (3, H, W) with values 0..255, or a tensor of
            such a shape.
        side: S, pixels.

    Raises:
        ValueError: an array of another shape.
    """
    if not isinstance(image, Image.Image):
        array = np.asarray(image)
        if array.ndim == 3 and array.shape[0] == 3 and array.shape[2] not in (3, 4):
            array = array.transpose(1, 2, 0)
        if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
            raise ValueError(f"an image must be (H, W), (H, W, 3), (H, W, 4) or (3, H, W), not {array.shape}")
        image = Image.fromarray(np.ascontiguousarray(array).astype(np.uint8))
    if image.mode != "RGB":  # else a copy, of what may be half a gigabyte
        image = image.convert("RGB")
    resized = image.resize((side, side), Image.Resampling.BICUBIC)
    return np.array(resized, np.uint8)
