"""How the server's codec workers are set up: `cope serve` options, which travel as environment variables.

vLLM starts API-server processes of its own, to which an environment is all that comes along.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cope_codec.executor import CodecExecutor
    from cope_codec.limits import Limits
    from cope_codec.sandbox import Sandboxed

_PREFIX = "COPE_CODEC_"


@dataclass(frozen=True, slots=True)
class CodecSettings:
    """The codec workers of one API-server process.

    Attributes:
        workers: worker processes; 0 shares the cores, or the CPUs of the Ray cluster, among the API-server processes.
        queue: tasks that may wait; more videos are refused with 429.
        timeout_s: seconds that a worker may spend on one task.
        memory_mb: address space that a worker may add to what it holds when warm, MiB.
        cache_mb: most memory of the cache of primitives, MiB.
        max_mb: size of a video, MiB.
        max_seconds: length of a video, seconds.
        max_gigapixels: what is decoded for one video, 10**9 pixels of source pictures: it bounds the time that the
            workers spend on all its tasks together.
        executor: `local` for processes of this machine, `ray` for actors of the cluster that `RAY_ADDRESS` names.
        sandbox: `try` closes the workers where the kernel can, `require` starts none where it cannot, `off` leaves them
            the rights of the server.
    """

    workers: int = 0
    queue: int = 256
    timeout_s: float = 30.0
    memory_mb: int = 1200
    cache_mb: int = 512
    max_mb: int = 16384
    max_seconds: float = 32400.0
    max_gigapixels: float = 1000.0
    executor: str = "local"
    sandbox: str = "try"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> CodecSettings:
        """Read `COPE_CODEC_WORKERS`, `COPE_CODEC_QUEUE` and so on.

        Raises:
            ValueError: a value is no number, or out of range; the message names the variable.
        """
        values: dict[str, float | str] = {**read_numbers(_PREFIX, _KINDS, environment)}
        for name, choices in _CHOICES.items():
            variable = _PREFIX + name.upper()
            choice = environment.get(variable, "").strip()
            if choice and choice not in choices:
                raise ValueError(f"{variable} must be one of {', '.join(choices)}, not {choice!r}")
            values[name] = choice or choices[0]
        return cls(**values)  # type: ignore[arg-type]  # `_KINDS` has the fields' own types

    def make_executor(self, api_servers: int) -> CodecExecutor:
        """Start the workers of one of so many API-server processes; they are warm some seconds later.

        Raises:
            RuntimeError: a sandbox is required, and this machine lacks what it takes.
            ModuleNotFoundError: Ray is asked for and not installed.
            ConnectionError: Ray's cluster cannot be reached.
        """
        if self.executor == "ray":
            import ray

            from cope_codec.ray_pool import RayPool

            if not ray.is_initialized():
                ray.init(include_dashboard=False, log_to_driver=False)
            workers = self.workers or max(1, int(ray.cluster_resources().get("CPU", 1)) // max(1, api_servers))
            return RayPool(workers, limits=self.limits(), max_queue=self.queue, sandboxed=self.sandboxed())
        from cope_codec.pool import CodecPool

        return CodecPool(
            self.worker_count(api_servers), limits=self.limits(), max_queue=self.queue, sandboxed=self.sandboxed()
        )

    def worker_count(self, api_servers: int) -> int:
        """Workers of one of so many API-server processes."""
        return self.workers or max(1, len(os.sched_getaffinity(0)) // max(1, api_servers))

    def sandboxed(self) -> Sandboxed:
        """`sandbox` as the pools take it."""
        return "require" if self.sandbox == "require" else self.sandbox == "try"

    def limits(self) -> Limits:
        """What a video and a task may take."""
        from cope_codec.limits import Limits

        return Limits(
            max_bytes=self.max_mb << 20,
            max_duration_s=self.max_seconds,
            max_decoded_pixels=round(self.max_gigapixels * 10**9),
            wall_s=self.timeout_s,
            memory_bytes=self.memory_mb << 20,
        )


def read_numbers(
    prefix: str, kinds: Sequence[tuple[str, type[int] | type[float], float]], environment: Mapping[str, str]
) -> dict[str, float]:
    """The numbers among the settings that the environment holds.

    Args:
        prefix: of the variables.
        kinds: name, type and lowest value of each.
        environment: where to look.

    Raises:
        ValueError: a value is no number, or out of range; the message names the variable.
    """
    values: dict[str, float] = {}
    for name, kind, lowest in kinds:
        variable = prefix + name.upper()
        text = environment.get(variable, "").strip()
        if not text:
            continue
        try:
            value = kind(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise ValueError(f"{variable} must be {what}, not {text!r}") from None
        if not lowest <= value < float("inf"):
            raise ValueError(f"{variable} must be at least {lowest:g}, not {text}")
        values[name] = value
    return values


# option: (name, type, lowest value)
_KINDS: tuple[tuple[str, type[int] | type[float], float], ...] = (
    ("workers", int, 0),
    ("queue", int, 1),
    ("timeout_s", float, 0.1),
    ("memory_mb", int, 1),
    ("cache_mb", int, 1),
    ("max_mb", int, 1),
    ("max_seconds", float, 0.1),
    ("max_gigapixels", float, 0.001),
)
# option: what it may be, the default first
_CHOICES = {"executor": ("local", "ray"), "sandbox": ("try", "require", "off")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--codec-workers`, `--codec-queue` and so on."""
    for name in (*(name for name, _, _ in _KINDS), *_CHOICES):
        parser.add_argument(f"--codec-{name.replace('_', '-')}", metavar="N")


def to_environment(arguments: argparse.Namespace, environment: MutableMapping[str, str] = os.environ) -> None:
    """Put the options given into the environment, before what it held, and check all of it.

    Raises:
        ValueError: as `CodecSettings.from_environment`, or a sandbox is required that this machine cannot close.
    """
    for name in (*(name for name, _, _ in _KINDS), *_CHOICES):
        value = getattr(arguments, f"codec_{name}", None)
        if value is not None:
            environment[_PREFIX + name.upper()] = value
    settings = CodecSettings.from_environment(environment)
    if settings.sandbox == "require" and settings.executor == "local":
        from cope_codec import sandbox

        if lacking := sandbox.missing():
            raise ValueError(f"{_PREFIX}SANDBOX is 'require', but this machine lacks {' and '.join(lacking)}")
