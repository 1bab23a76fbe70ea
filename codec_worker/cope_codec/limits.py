"""How much of anything a video may take; what goes beyond is refused with `video_too_large` or stopped."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """Caps at open, at decode and on a worker process.

    Attributes:
        max_bytes: size of the file, bytes.
        max_pixels: size of one picture, pixels; the default is twice 8K UHD. FFmpeg's probe decodes a frame, so
            without this cap a forged header of 16000 x 16000 costs 600 MB at open.
        max_packets: packets of the video stream; the default is nine hours at 60 frames per second.
        max_duration_s: from the first frame to the last, announced or found, seconds.
        max_decoded_pixels: pixels of all the packets that one request decodes; the default is eight hours of 720p at
            30 frames per second with some room.
        wall_s: seconds that a worker may spend on one task.
        memory_bytes: address space that a worker may add to what it holds when warm.
        result_bytes: size of one task's result.
    """

    max_bytes: int = 16 * 1024 * _MIB
    max_pixels: int = 8192 * 8192
    max_packets: int = 2_000_000
    max_duration_s: float = 9 * 3600.0
    max_decoded_pixels: int = 10**12
    wall_s: float = 30.0
    memory_bytes: int = 1200 * _MIB
    result_bytes: int = 2048 * _MIB

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            whole = field.type == "int"
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                raise TypeError(f"{field.name} must be {'a whole' if whole else 'a'} number, not {value!r}")
            if not 0 < value < math.inf:
                raise ValueError(f"{field.name} must be positive and finite, not {value!r}")


DEFAULT_LIMITS = Limits()
