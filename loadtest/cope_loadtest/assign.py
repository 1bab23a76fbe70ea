"""Which clip each request gets: never one twice where it must be cold, few where it must be warm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cope_loadtest.corpus.clips import Clip, Wanted
from cope_loadtest.corpus.spec import ClipSpec
from cope_loadtest.scenario import Point, Scenario
from cope_loadtest.tables import ScenarioError

_SEEDS = 1_000_000  # clips of a run


@dataclass(frozen=True, slots=True)
class Share:
    """A point's clips within the corpus.

    Attributes:
        first: position of the first.
        count: how many; for a warm point they are used again and again.
        per_step: measured requests of one value of a sweep; 0 for a warm point.
    """

    first: int
    count: int
    per_step: int = 0


class Assignment:
    """The clips of a scenario, and what belongs to whom.

    Points that differ in the kind of request only share their clips: the same questions about the same clips. All
    others have clips of their own, so that what one has sent is new to the next.

    Args:
        scenario: whose points.
        seed: of the run; other seeds give other clips.
    """

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self._scenario = scenario
        self.wanted: list[Wanted] = []
        self._seed = seed * _SEEDS
        shares: dict[Any, Share] = {}
        self._shares: list[Share | None] = []
        for point in scenario.points:
            if not point.has_video:
                self._shares.append(None)
                continue
            key = (point.clip,) if point.cache == "warm" else (point.clip, point.cell)
            if key not in shares:
                shares[key] = self._take(point)
            self._shares.append(shares[key])

    def _take(self, point: Point) -> Share:
        scenario = self._scenario
        first, per_step = len(self.wanted), 0
        if point.cache == "warm":
            count = scenario.warm_clips
        else:
            steps = 1 if scenario.sweep is None else len(scenario.sweep.values) + scenario.sweep.knee_steps
            assert point.load.requests is not None  # the scenario was refused otherwise
            per_step = point.load.requests
            count = steps * (per_step + scenario.rounds * point.load.warmup)
        self.wanted += [self._wanted(point.clip, first + k) for k in range(count)]
        return Share(first, count, per_step)

    def _wanted(self, spec: ClipSpec, position: int) -> Wanted:
        return Wanted(spec, self._seed + position)

    def share(self, index: int) -> Share | None:
        """The clips of the point at this position; None if it has no video."""
        return self._shares[index]

    def warm_up(self, index: int) -> int:
        """How many requests go before those of a point: a warm one's clips are each sent once in every form."""
        point, share = self._scenario.points[index], self._shares[index]
        if share is None or point.cache == "cold":
            return point.load.warmup
        return max(point.load.warmup, share.count * len(point.requests))

    def position(self, index: int, step: int, warmup_run: int, warming: bool, number: int) -> int:
        """Position in the corpus of a request's clip.

        Args:
            index: of the point.
            step: of the sweep, from 0.
            warmup_run: which warm-up of the point this is, from 0, over all steps and rounds.
            warming: it is a warm-up request.
            number: of the request, within the step or within the warm-up.
        """
        point, share = self._scenario.points[index], self._shares[index]
        assert share is not None
        if point.cache == "warm":
            # In a warm-up all kinds of request ask for one clip before the next is taken.
            return share.first + (number // len(point.requests) if warming else number) % share.count
        if not warming:
            return share.first + step * share.per_step + number
        return share.first + share.count - 1 - warmup_run * point.load.warmup - number


def own_clips(needed: int, clips: Sequence[Clip], folder: Path) -> list[Clip]:
    """So many of the user's clips in place of drawn ones.

    Raises:
        ScenarioError: there are too few for what must be cold.
    """
    if len(clips) < needed:
        raise ScenarioError(
            f"corpus.folder: {needed} different clips are needed, and {folder} has {len(clips)}: give more, ask for "
            'fewer requests, or take cache = "warm" and fewer warm_clips'
        )
    return list(clips[:needed])
