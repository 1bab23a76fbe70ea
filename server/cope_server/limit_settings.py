"""How much requests may take together: `cope serve` options, which travel as environment variables."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from cope_server.codec_settings import read_numbers

_PREFIX = "COPE_LIMIT_"


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """The limits of one API-server process; those that begin with `key_` are for each API key, 0 is none of its own.

    Attributes:
        requests: POST requests that are being answered or wait.
        video_requests: of these, how many may carry video: fewer, so that text still finds a place.
        video_seconds: length of the videos that wait for the codec workers or are being decoded, seconds.
        video_gigapixels: what is to be decoded of them, 10**9 pixels of source pictures.
        extractions: videos that are decoded at a time, the others wait their turn; 0 is two per codec worker.
        held_mb: request bodies in memory and fetched videos on disk, MiB.
        videos: videos of one request.
        body_mb: body of one request, MiB; uploads have limits of their own (`FileSettings`).
        idle_s: how long nothing of a request's body may come, seconds; uploads too. A client that sends less than 1 KiB
            a second has so long in all.
    """

    requests: int = 1024
    key_requests: int = 0
    video_requests: int = 256
    key_video_requests: int = 0
    video_seconds: int = 86400
    key_video_seconds: int = 0
    video_gigapixels: float = 4000.0
    key_video_gigapixels: float = 0.0
    extractions: int = 0
    key_extractions: int = 0
    held_mb: int = 16384
    key_held_mb: int = 0
    videos: int = 32
    body_mb: int = 512
    idle_s: float = 60.0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> LimitSettings:
        """Read `COPE_LIMIT_REQUESTS`, `COPE_LIMIT_KEY_REQUESTS` and so on.

        Raises:
            ValueError: a value is no number, or out of range; the message names the variable.
        """
        return cls(**read_numbers(_PREFIX, _KINDS, environment))  # type: ignore[arg-type]  # `_KINDS` has the types


# option: (name, type, lowest value)
_KINDS: tuple[tuple[str, type[int] | type[float], float], ...] = (
    ("requests", int, 1),
    ("key_requests", int, 0),
    ("video_requests", int, 1),
    ("key_video_requests", int, 0),
    ("video_seconds", int, 1),
    ("key_video_seconds", int, 0),
    ("video_gigapixels", float, 0.001),
    ("key_video_gigapixels", float, 0),
    ("extractions", int, 0),
    ("key_extractions", int, 0),
    ("held_mb", int, 1),
    ("key_held_mb", int, 0),
    ("videos", int, 1),
    ("body_mb", int, 1),
    ("idle_s", float, 0.1),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--limit-requests`, `--limit-key-requests` and so on."""
    for name, _, _ in _KINDS:
        parser.add_argument(f"--limit-{name.replace('_', '-')}", metavar="N")


def to_environment(arguments: argparse.Namespace, environment: MutableMapping[str, str] = os.environ) -> None:
    """Put the options given into the environment, before what it held, and check all of it.

    Raises:
        ValueError: as `LimitSettings.from_environment`.
    """
    for name, _, _ in _KINDS:
        value = getattr(arguments, f"limit_{name}", None)
        if value is not None:
            environment[_PREFIX + name.upper()] = value
    LimitSettings.from_environment(environment)
