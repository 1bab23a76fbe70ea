"""What a caller may ask of a video: time grid, keyframes, clip, mode or dense frames."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any, Literal

from cope_codec.errors import CodecError

Mode = Literal["auto", "native", "transcode", "paper"]
MODES: tuple[Mode, ...] = ("auto", "native", "transcode", "paper")
ENCODED_FPS = 30  # of the paper's re-encoding (Sec. 3.1)

# option: (lowest, highest) allowed value, both included
_RANGES: dict[str, tuple[float, float]] = {
    "fps": (0.01, 60.0),
    "keyframes_per_gop": (1, 64),
    "gop_slots": (1, 64),
    "max_gops": (1, 4096),
    "frames": (1, 4096),
    "stream": (0, 63),
    "start_s": (0.0, math.inf),
    "end_s": (0.0, math.inf),
}
_INTEGERS = ("keyframes_per_gop", "gop_slots", "max_gops", "frames", "stream")
# What `frames` excludes.
GRID_OPTIONS = ("fps", "keyframes_per_gop", "gop_slots", "max_gops", "mode")


@dataclass(frozen=True, slots=True)
class VideoOptions:
    """How a video is cut into slots and GOPs; the defaults are the paper's (Sec. 3.1, App. A).

    Attributes:
        fps: slots per second of the time grid.
        keyframes_per_gop: slots of a full GOP that are coded as pictures (I), spread evenly; the others are P.
        gop_slots: slots of a full GOP.
        start_s: start of the clip, seconds from the first frame; None is the first frame.
        end_s: end of the clip (the frame at `end_s` is outside), seconds from the first frame; None is the last frame.
        max_gops: a longer video is represented by this many GOPs, sampled uniformly.
        mode: where motion vectors come from: `native` (the stream's own), `transcode` (re-encoded, pictures from the
            source), `auto` (native where the codec carries usable vectors, else transcode), or `paper`: the paper's
            definition. The clip becomes MPEG-4 Part 2 of exactly 30 frames per second, frames repeated or left out, no
            B-frames, an I-frame at each GOP's first slot and every 240 frames from there; 30 / fps frames make a slot;
            and the pictures too are those of the re-encoded stream. With 8 slots per GOP at 1 FPS, 16 at 2 or 24 at 3
            an I-frame is 240 frames from the next, as in the paper. Shorter GOPs have theirs more often, so that each
            can be made without the one before it; longer ones have further I-frames inside. `transcode` in contrast
            encodes no frame twice, and its slots are the source's frames, as in `native`.
        frames: dense baseline: take this many RGB frames uniformly and no delta-tokens. Excludes the grid options.
        stream: which of the file's video streams, counted from 0 without cover art; None is the one that FFmpeg
            holds for the best.

    Raises:
        CodecError: `invalid_option`, with `param` set, for a value that is out of range or contradicts another.
    """

    fps: float = 1.0
    keyframes_per_gop: int = 1
    gop_slots: int = 8
    start_s: float | None = None
    end_s: float | None = None
    max_gops: int = 64
    mode: Mode = "auto"
    frames: int | None = None
    stream: int | None = None

    def __post_init__(self) -> None:
        for name, (lowest, highest) in _RANGES.items():
            value = getattr(self, name)
            if value is None and name in ("start_s", "end_s", "frames", "stream"):
                continue
            if not _is_finite_number(value):
                shown = reprlib.repr(value)  # a client's value may be long
                raise CodecError("invalid_option", f"{name} must be a finite number, not {shown}", param=name)
            if name in _INTEGERS and value != int(value):
                raise CodecError("invalid_option", f"{name} must be a whole number, not {value!r}", param=name)
            if not lowest <= value <= highest:
                bounds = f"at least {lowest:g}" if highest == math.inf else f"between {lowest:g} and {highest:g}"
                raise CodecError("invalid_option", f"{name} must be {bounds}, not {value!r}", param=name)
            # 1 and 1.0 are the same option: one type per field, or they would make different cache keys.
            object.__setattr__(self, name, int(value) if name in _INTEGERS else float(value))
        if self.mode not in MODES:
            raise CodecError(
                "invalid_option", f"mode must be one of {', '.join(MODES)}, not {reprlib.repr(self.mode)}", param="mode"
            )
        if self.mode == "paper":
            frames_per_slot(self.fps)
        if self.keyframes_per_gop > self.gop_slots:
            raise CodecError(
                "invalid_option",
                f"keyframes_per_gop ({self.keyframes_per_gop}) cannot exceed gop_slots ({self.gop_slots})",
                param="keyframes_per_gop",
            )
        if self.start_s is not None and self.end_s is not None and self.end_s <= self.start_s:
            raise CodecError(
                "invalid_option", f"end_s ({self.end_s:g}) must lie after start_s ({self.start_s:g})", param="end_s"
            )
        if self.frames is not None:
            for name in GRID_OPTIONS:
                if getattr(self, name) != _DEFAULTS[name]:
                    raise CodecError(
                        "invalid_option", f"frames asks for dense RGB input, which {name} does not apply to", param=name
                    )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> VideoOptions:
        """Build options from JSON-like values; None, JSON's null, is the default.

        Raises:
            CodecError: `invalid_option` for an unknown name or a value that the constructor refuses.
        """
        for name in values:
            if name not in _DEFAULTS:
                raise CodecError(
                    "invalid_option",
                    f"unknown video option {reprlib.repr(name)}; known are {', '.join(_DEFAULTS)}",
                    param=name,
                )
        return cls(**{name: value for name, value in values.items() if value is not None})

    def to_mapping(self) -> dict[str, Any]:
        """The options that differ from their defaults; `from_mapping` reads it back."""
        return {name: value for name, default in _DEFAULTS.items() if (value := getattr(self, name)) != default}

    def keyframe_slots(self) -> tuple[int, ...]:
        """Positions of the keyframes within a full GOP.

        They depend on `gop_slots` and not on how many slots a GOP has so far, so the layout of a growing video's
        last GOP never changes, it only gets longer.
        """
        return tuple(k * self.gop_slots // self.keyframes_per_gop for k in range(self.keyframes_per_gop))


def _is_finite_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def json_schema() -> dict[str, Any]:
    """JSON schema of the options, each for itself: what contradicts what is not in it."""
    properties: dict[str, dict[str, Any]] = {}
    for name, default in _DEFAULTS.items():
        if name == "mode":
            properties[name] = {"type": "string", "enum": list(MODES)}
        else:
            lowest, highest = _RANGES[name]
            kind = "integer" if name in _INTEGERS else "number"
            properties[name] = {"type": kind, "minimum": lowest}
            if highest != math.inf:
                properties[name]["maximum"] = highest
        if default is not None:
            properties[name]["default"] = default
    return {"type": "object", "additionalProperties": False, "properties": properties}


def frames_per_slot(fps: float) -> int:
    """Frames of the paper's re-encoded stream from one slot to the next: 30, 15 and 10 at 1, 2 and 3 FPS.

    Raises:
        CodecError: `invalid_option` where that is no whole number.
    """
    step = ENCODED_FPS / Fraction(fps).limit_denominator(100_000)
    if step.denominator != 1:
        raise CodecError(
            "invalid_option", f"mode paper takes an fps that divides {ENCODED_FPS}, not {fps:g}", param="fps"
        )
    return step.numerator


_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(VideoOptions)}
