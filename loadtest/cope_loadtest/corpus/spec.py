"""How clips are to be made; imports nothing heavy, so that scenarios can be read anywhere."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

Motion = Literal["zoom", "pan", "sprites", "noise"]
MOTIONS: tuple[Motion, ...] = get_args(Motion)
# name: (FFmpeg's encoder, container, media type, whether it makes B-frames)
CODECS: dict[str, tuple[str, str, str, bool]] = {
    "h264": ("libx264", "mp4", "video/mp4", True),
    "h265": ("libx265", "mp4", "video/mp4", True),
    "mpeg4": ("mpeg4", "mp4", "video/mp4", True),
    "mpeg2": ("mpeg2video", "mp4", "video/mp4", True),
    "vp9": ("libvpx-vp9", "webm", "video/webm", False),
}


@dataclass(frozen=True, slots=True)
class ClipSpec:
    """What the clips of a point have in common.

    Attributes:
        motion: kinds of motion, taken in turns: `zoom` (into a texture that looks the same at every scale), `pan` (a
            camera over a textured wall), `sprites` (textured things that move and turn before a slow background),
            `noise` (`pan` with a camera's grain, which costs bits and has no motion).
        codec: one of `CODECS`.
        width, height: pixels; even.
        fps: frames per second.
        seconds: length.
        gop: most frames from one I-frame to the next.
        b_frames: most B-frames in a row.

    Raises:
        ValueError: a field is out of range; the message names it.
    """

    motion: tuple[str, ...] = MOTIONS
    codec: str = "h264"
    width: int = 320
    height: int = 240
    fps: int = 15
    seconds: float = 16.0
    gop: int = 60
    b_frames: int = 2

    def __post_init__(self) -> None:
        if not self.motion or not set(self.motion) <= set(MOTIONS):
            raise ValueError(f"motion must be a list of {', '.join(MOTIONS)}, not {list(self.motion)!r}")
        if self.codec not in CODECS:
            raise ValueError(f"codec must be one of {', '.join(CODECS)}, not {self.codec!r}")
        for name in ("width", "height"):
            value = getattr(self, name)
            if not 32 <= value <= 4096 or value % 2:
                raise ValueError(f"{name} must be even and between 32 and 4096, not {value!r}")
        if not 1 <= self.fps <= 240:
            raise ValueError(f"fps must be between 1 and 240, not {self.fps!r}")
        if not (math.isfinite(self.seconds) and self.seconds * self.fps >= 1):
            raise ValueError(f"seconds must hold at least one frame, not {self.seconds!r}")
        if self.gop < 1:
            raise ValueError(f"gop must be at least 1, not {self.gop!r}")
        if not 0 <= self.b_frames <= 16:
            raise ValueError(f"b_frames must be between 0 and 16, not {self.b_frames!r}")
        if self.b_frames and not CODECS[self.codec][3]:
            raise ValueError(f"b_frames must be 0 for codec {self.codec}")
