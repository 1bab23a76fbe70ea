"""Arrival processes are what they are called."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cope_loadtest.arrivals import Load, due_times


def times(**fields: object) -> np.ndarray:
    return np.array(list(due_times(Load(**fields))))  # type: ignore[arg-type]


def test_constant() -> None:
    assert times(arrival="constant", rate=4.0, requests=5).tolist() == [0, 0.25, 0.5, 0.75, 1.0]
    assert len(times(arrival="constant", rate=10.0, duration_s=2.0)) == 20


def test_both_bounds_hold() -> None:
    assert len(times(arrival="constant", rate=10.0, duration_s=2.0, requests=7)) == 7
    assert len(times(arrival="constant", rate=10.0, duration_s=0.5, requests=7)) == 5


def test_bursts_have_the_rate_on_average() -> None:
    due = times(arrival="burst", rate=4.0, burst=6, requests=18)
    assert due.tolist() == [0.0] * 6 + [1.5] * 6 + [3.0] * 6


def test_poisson_has_the_rate_and_independent_exponential_gaps() -> None:
    due = times(arrival="poisson", rate=20.0, requests=20_000, seed=3)
    gaps = np.diff(due)
    assert gaps.mean() == pytest.approx(1 / 20, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.03)
    # Memoryless: the chance of waiting another mean, having waited one, is 1/e again.
    assert (gaps > 0.1).sum() / (gaps > 0.05).sum() == pytest.approx(np.exp(-1), abs=0.02)
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 0.03
    counts = np.bincount(due.astype(int))[:-1]
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.15)


def test_poisson_repeats_with_its_seed() -> None:
    one = times(arrival="poisson", requests=50, seed=1)
    assert one.tolist() == times(arrival="poisson", requests=50, seed=1).tolist()
    assert one.tolist() != times(arrival="poisson", requests=50, seed=2).tolist()


@pytest.mark.parametrize("arrival", ["constant", "poisson"])
def test_a_ramp_grows_to_the_rate(arrival: str) -> None:
    due = times(arrival=arrival, rate=200.0, ramp_s=10.0, duration_s=20.0)
    in_ramp, after = due[due < 10], due[due >= 10]
    assert len(in_ramp) == pytest.approx(1000, rel=0.1)  # half of the rate on average
    assert len(after) == pytest.approx(2000, rel=0.1)
    thirds = [int(((due >= k * 2.5) & (due < (k + 1) * 2.5)).sum()) for k in range(4)]
    expected = [200 * 10 / 2 * ((k + 1) ** 2 - k**2) / 16 for k in range(4)]
    assert thirds == pytest.approx(expected, rel=0.35)
    assert all(a <= b for a, b in itertools.pairwise(due))


def test_parts_add_up() -> None:
    load = Load(arrival="poisson", requests=7, duration_s=9.0, seed=4)
    parts = [load.part(k, 3) for k in range(3)]
    assert [part.requests for part in parts if part] == [3, 2, 2]
    assert [part.seed for part in parts if part] == [4, 5, 6]
    assert all(part is not None and part.duration_s == 3.0 for part in parts)
    assert Load(requests=1).part(1, 2) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "requests or duration_s"),
        ({"requests": 0}, "requests must be at least 1"),
        ({"requests": 1, "rate": 0.0}, "rate must be above 0"),
        ({"requests": 1, "rate": float("nan")}, "rate must be above 0"),
        ({"requests": 1, "concurrency": 0}, "concurrency must be at least 1"),
        ({"requests": 1, "arrival": "random"}, "arrival must be one of"),
        ({"requests": 1, "ramp_s": -1.0}, "ramp_s must not be negative"),
        ({"duration_s": -1.0}, "duration_s must be above 0"),
        ({"duration_s": 2.0, "ramp_s": 2.0}, "ramp_s .2. must be shorter"),
    ],
)
def test_bad_values_are_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Load(**fields)  # type: ignore[arg-type]
