"""Quantiles with bootstrap intervals: how far a figure would move if the same run were done again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
_RESAMPLES = 1000
_LEVEL = 0.95
_BLOCK = 2_000_000  # random numbers at a time
Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its 95% interval.

    Attributes:
        value: of the sample itself.
        low, high: bounds of the interval.
    """

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """Rounded to microseconds, if it is seconds."""
        return {"value": round(self.value, 6), "low": round(self.low, 6), "high": round(self.high, 6)}


def resampled(values: Sequence[float], quantiles: Sequence[float], seed: int = 0) -> Values:
    """Quantiles of bootstrap samples: float64 (resamples, quantiles).

    The seed is fixed, so that a report made twice of the same requests is the same.
    """
    sample = np.asarray(values, np.float64)
    random = np.random.default_rng(seed)
    rows: list[Values] = []
    step = max(1, min(_RESAMPLES, _BLOCK // sample.size))
    for start in range(0, _RESAMPLES, step):
        count = min(step, _RESAMPLES - start)
        drawn = sample[random.integers(sample.size, size=(count, sample.size))]
        rows.append(np.quantile(drawn, quantiles, axis=1).T)
    return np.concatenate(rows)


def estimate(value: float, samples: Values) -> Estimate:
    """An estimate from the bootstrap's values of the same figure; its interval always holds the value."""
    tail = (1 - _LEVEL) / 2
    low, high = np.quantile(samples, (tail, 1 - tail))
    return Estimate(value, min(float(low), value), max(float(high), value))


def summarise(values: Sequence[float]) -> dict[str, Any] | None:
    """n, mean, min, max, and each of `QUANTILES` with its interval; None of nothing."""
    if not values:
        return None
    sample = np.asarray(values, np.float64)
    wanted = list(QUANTILES.values())
    exact, drawn = np.quantile(sample, wanted), resampled(values, wanted)
    return {
        "n": len(values),
        "mean": round(float(sample.mean()), 6),
        "min": round(float(sample.min()), 6),
        "max": round(float(sample.max()), 6),
        **{name: estimate(float(exact[k]), drawn[:, k]).to_json() for k, name in enumerate(QUANTILES)},
    }


def change(before: Sequence[float], after: Sequence[float], quantile: float) -> Estimate:
    """Relative change of a quantile, 0.1 for 10% more, with its interval; the samples are independent."""
    old, new = float(np.quantile(before, quantile)), float(np.quantile(after, quantile))
    drawn_old = resampled(before, [quantile], seed=1)[:, 0]
    drawn_new = resampled(after, [quantile], seed=2)[:, 0]
    tiny = 1e-9  # a quantile of zero cannot change relatively; a nanosecond is below any clock
    return estimate(new / max(old, tiny) - 1, drawn_new / np.maximum(drawn_old, tiny) - 1)
