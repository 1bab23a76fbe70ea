"""When requests are due: at a constant rate, as a Poisson process, in bursts, or as soon as a user is free."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

Arrival = Literal["constant", "poisson", "burst", "closed"]
ARRIVALS: tuple[Arrival, ...] = get_args(Arrival)


@dataclass(frozen=True, slots=True)
class Load:
    """How requests arrive, and when they stop to.

    Attributes:
        arrival: `constant`, `poisson` and `burst` are open loops: requests are due at times that the server's answers
            do not change. `closed` is `concurrency` users who each send their next request when they have their answer.
        rate: of open loops: requests per second.
        burst: requests that are due at the same moment (`burst`).
        concurrency: users of a closed loop.
        requests: stop after this many; None: only the time counts.
        duration_s: stop to send after this long, counted from the start; None: only the number counts.
        ramp_s: the rate grows to its value, or users join, over this long; such requests are not counted.
        warmup: requests before all others, one after another; they are not counted.
        max_in_flight: open loops send no more than this many at a time; the rest waits, with the clock running.
        drain_s: how long what is in flight may take once nothing more is sent.
        seed: of the Poisson process.

    Raises:
        ValueError: a field is out of range; the message names it.
    """

    arrival: Arrival = "closed"
    rate: float = 1.0
    burst: int = 4
    concurrency: int = 1
    requests: int | None = None
    duration_s: float | None = None
    ramp_s: float = 0.0
    warmup: int = 1
    max_in_flight: int = 512
    drain_s: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.arrival not in ARRIVALS:
            raise ValueError(f"arrival must be one of {', '.join(ARRIVALS)}, not {self.arrival!r}")
        for name in ("rate",):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be above 0, not {value!r}")
        for name in ("burst", "concurrency", "max_in_flight"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)!r}")
        for name in ("ramp_s", "drain_s", "warmup", "seed"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)!r}")
        if self.requests is None and self.duration_s is None:
            raise ValueError("requests or duration_s is needed: a load must have an end")
        if self.requests is not None and self.requests < 1:
            raise ValueError(f"requests must be at least 1, not {self.requests!r}")
        if self.duration_s is not None and not (math.isfinite(self.duration_s) and self.duration_s > 0):
            raise ValueError(f"duration_s must be above 0, not {self.duration_s!r}")
        if self.duration_s is not None and self.ramp_s >= self.duration_s:
            raise ValueError(f"ramp_s ({self.ramp_s:g}) must be shorter than duration_s ({self.duration_s:g})")

    def part(self, index: int, parts: int) -> Load | None:
        """One of several equal parts, or None where it has no request; parts after the first draw other times."""
        requests, duration = self.requests, self.duration_s
        if requests is not None:
            requests = requests // parts + (index < requests % parts)
            if not requests:
                return None
        return replace(
            self,
            requests=requests,
            duration_s=None if duration is None else duration / parts,
            seed=self.seed + index,
        )


def due_times(load: Load) -> Iterator[float]:
    """When the requests of an open loop are due, seconds from its start, in order.

    A unit process (one request per unit on average) is drawn first; then each unit is as long as the rate at that
    moment makes it. So a ramp keeps a process what it is.
    """
    number = 0
    for unit in _units(load):
        due = _when(unit, load.rate, load.ramp_s)
        if load.duration_s is not None and due >= load.duration_s:
            return
        if load.requests is not None and number >= load.requests:
            return
        yield due
        number += 1


def _units(load: Load) -> Iterator[float]:
    if load.arrival == "poisson":
        random = np.random.default_rng(load.seed)
        total = 0.0
        while True:
            total += float(random.exponential())
            yield total
    number = 0
    while True:
        yield float(number if load.arrival == "constant" else number // load.burst * load.burst)
        number += 1


def _when(unit: float, rate: float, ramp_s: float) -> float:
    """When so many requests have come on average: the inverse of the integral of the rate."""
    in_ramp = rate * ramp_s / 2
    if unit < in_ramp:
        return math.sqrt(2 * unit * ramp_s / rate)
    return ramp_s + (unit - in_ramp) / rate
