"""How far apart two servers are that were measured in turns, and how sure that is."""

# R rounds, N requests of a round, B bootstrap samples.

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cope_loadtest.intervals import Estimate, estimate

_RESAMPLES = 1000
_MOST_NUMBERS = 4_000_000  # held at a time


def difference(before: Sequence[Sequence[float]], after: Sequence[Sequence[float]], quantile: float) -> Estimate:
    """How much larger a quantile is after than before, with its 95% bootstrap interval.

    Whole rounds are drawn, each together with the round beside it: requests of one round share the machine's state and,
    in a closed loop, each other's load, so that they are no independent readings.

    Args:
        before, after: (R, N), one row per round; row r of both was measured at about the same time.
        quantile: 0 to 1.

    Raises:
        ValueError: the rounds do not pair, or hold nothing.
    """
    old, new = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if old.ndim != 2 or old.shape != new.shape or not old.size:
        raise ValueError(f"rounds of shapes {old.shape} and {new.shape} do not pair")
    value = float(np.quantile(new, quantile) - np.quantile(old, quantile))
    random = np.random.default_rng(0)  # fixed, so that the same readings give the same report
    drawn: list[npt.NDArray[np.float64]] = []
    step = max(1, min(_RESAMPLES, _MOST_NUMBERS // old.size))
    for start in range(0, _RESAMPLES, step):
        chosen = random.integers(len(old), size=(min(step, _RESAMPLES - start), len(old)))  # (B, R)
        ends = [np.quantile(side[chosen].reshape(len(chosen), -1), quantile, axis=1) for side in (old, new)]
        drawn.append(ends[1] - ends[0])
    return estimate(value, np.concatenate(drawn))
