"""GOPs on their way: requests that want the same one at the same time wait for one extraction of it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from cope_codec import cache
from cope_codec.cache import PrimitivesCache
from cope_codec.executor import PooledVideo
from cope_codec.extract import primitives_key
from cope_codec.plan import GopPlan, VideoPlan
from cope_codec.primitives import GopPrimitives
from cope_codec.video import check_side, undecodable


@dataclass(eq=False)
class _Flight:
    """One task of a worker, and how many requests wait for it."""

    keys: tuple[str, ...]
    task: asyncio.Task[dict[str, GopPrimitives]]
    waiting: set[object] = field(default_factory=set)


class Flights:
    """Extracts through a cache, for the coroutines of one event loop.

    A task of a worker is called back when nobody waits for it any more, and not before: a request that is cancelled
    does not take away what another one waits for.

    Args:
        store: where to look and keep; None is the cache shared by the process.
    """

    def __init__(self, store: PrimitivesCache | None = None) -> None:
        self.store = cache.shared if store is None else store
        self._flights: dict[str, _Flight] = {}

    def kept(self, plan: VideoPlan, side: int, space: str = "") -> list[GopPrimitives] | None:
        """All GOPs of a plan, if the cache has every one of them; see `extract`."""
        keys = [space + primitives_key(gop, side) for gop in plan.gops]
        if any(self.store.peek(key) is None for key in keys):
            return None
        found = [self.store.get(key) for key in keys]
        gops = [gop for gop in found if gop is not None]
        return gops if len(gops) == len(keys) else None  # another thread may have pushed one out in between

    async def extract(self, video: PooledVideo, side: int, space: str = "") -> list[GopPrimitives]:
        """All GOPs of a video, decoding only those that neither the cache has nor anybody is decoding.

        Args:
            video: opened by an executor.
            side: S, side of the model's square input, pixels.
            space: only GOPs that were extracted for the same space are found: a faster answer would tell who asks that
                somebody else has sent the same video.

        Raises:
            CodecError: `undecodable_video`, `timeout`, `out_of_memory`, `worker_died`, `cancelled`.
            ValueError: `side` is not a positive multiple of 4.
        """
        check_side(side)
        keys = [space + primitives_key(gop, side) for gop in video.plan.gops]
        found: dict[str, GopPrimitives] = {}
        flights: set[_Flight] = set()
        lacking: list[GopPlan] = []
        for gop, key in zip(video.plan.gops, keys, strict=True):
            if key in self._flights:
                flights.add(self._flights[key])
            elif (kept := self.store.get(key)) is not None:
                found[key] = kept
            else:
                lacking.append(gop)
        groups = deque(video.executor.groups(video, lacking))
        me = object()
        try:
            while groups or flights:
                # As many of its own at a time as there are workers, and one: a long video must not fill the queue.
                while groups and len(flights) <= video.executor.size:
                    self._board(video, side, space, groups.popleft(), found, flights)
                for flight in flights:
                    flight.waiting.add(me)
                if flights:
                    await asyncio.wait([flight.task for flight in flights], return_when=asyncio.FIRST_COMPLETED)
                for flight in [flight for flight in flights if flight.task.done()]:
                    flights.discard(flight)
                    found.update(flight.task.result())
        finally:
            for flight in flights:
                flight.waiting.discard(me)
                if not flight.waiting and not flight.task.done():
                    self._land(flight)
                    flight.task.cancel()
        gops = [found[key] for key in keys]
        if all(gop.undecoded for gop in gops):
            raise undecodable()
        return gops

    def _board(
        self,
        video: PooledVideo,
        side: int,
        space: str,
        gops: Sequence[GopPlan],
        found: dict[str, GopPrimitives],
        flights: set[_Flight],
    ) -> None:
        """Find GOPs that were lacking in the meantime, and start what is lacking still."""
        lacking = []
        for gop in gops:
            key = space + primitives_key(gop, side)
            if key in self._flights:
                flights.add(self._flights[key])
            elif (kept := self.store.peek(key)) is not None:
                found[key] = kept
            else:
                lacking.append(gop)
        if lacking:
            flights.add(self._start(video, side, space, lacking))

    def _start(self, video: PooledVideo, side: int, space: str, gops: Sequence[GopPlan]) -> _Flight:
        keys = tuple(space + primitives_key(gop, side) for gop in gops)
        flight = _Flight(keys, asyncio.ensure_future(self._decode(video, side, space, gops)))
        self._flights.update(dict.fromkeys(flight.keys, flight))
        flight.task.add_done_callback(lambda task: self._landed(flight, task))
        return flight

    async def _decode(
        self, video: PooledVideo, side: int, space: str, gops: Sequence[GopPlan]
    ) -> dict[str, GopPrimitives]:
        found = await asyncio.wrap_future(video.executor.submit(video, side, gops))
        return await asyncio.to_thread(self._kept, space, found)  # they are copied

    def _kept(self, space: str, gops: Sequence[GopPrimitives]) -> dict[str, GopPrimitives]:
        return {space + gop.key: gop if gop.undecoded else self.store.put(gop, space) for gop in gops}

    def _landed(self, flight: _Flight, task: asyncio.Task[dict[str, GopPrimitives]]) -> None:
        self._land(flight)
        if not task.cancelled():
            task.exception()  # whoever waited has had it; when nobody does, asyncio would complain

    def _land(self, flight: _Flight) -> None:
        for key in flight.keys:
            if self._flights.get(key) is flight:
                del self._flights[key]
