"""Primitives by GOP key, bounded in bytes and shared by all requests of a process."""

from __future__ import annotations

import threading
from collections import OrderedDict

from cope_codec.extract import primitives_key
from cope_codec.primitives import GopPrimitives
from cope_codec.video import Video, undecodable

DEFAULT_BYTES = 512 * 1024 * 1024


class PrimitivesCache:
    """Least recently used GOPs go first; safe to use from several threads.

    GOPs that came from a worker lie in the file of their whole task, which would live, and hold a descriptor, as long
    as one of them does. So the cache keeps copies of these.

    Args:
        max_bytes: most memory that the arrays may hold; a GOP larger than this is not kept.
    """

    def __init__(self, max_bytes: int = DEFAULT_BYTES) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self.hits = 0
        self.misses = 0
        self._gops: OrderedDict[str, GopPrimitives] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> GopPrimitives | None:
        """The GOP under this key, or None; counts a hit or a miss."""
        with self._lock:
            gop = self._gops.get(key)
            if gop is None:
                self.misses += 1
                return None
            self.hits += 1
            self._gops.move_to_end(key)
            return gop

    def peek(self, key: str) -> GopPrimitives | None:
        """As `get`, but counts nothing: for whoever has asked before."""
        with self._lock:
            return self._gops.get(key)

    def put(self, gop: GopPrimitives, space: str = "") -> GopPrimitives:
        """Keep a GOP and drop the least recently used ones until the bound holds.

        Args:
            gop: kept under its own key.
            space: put before the key, for callers who must not find each other's.

        Returns:
            The GOP as it is kept, to go on with, so that what it was copied from can be freed.
        """
        if gop.nbytes > self.max_bytes:
            return gop
        key = space + gop.key
        kept = self.peek(key)
        if kept is not None:
            return kept
        gop = gop.owned()  # without the lock: 3 ms for a GOP of 6.6 MB
        with self._lock:
            if key in self._gops:
                return self._gops[key]
            self._gops[key] = gop
            self.nbytes += gop.nbytes
            while self.nbytes > self.max_bytes:
                _, dropped = self._gops.popitem(last=False)
                self.nbytes -= dropped.nbytes
        return gop

    def __len__(self) -> int:
        return len(self._gops)


shared = PrimitivesCache()


def extract(video: Video, side: int, cache: PrimitivesCache | None = None) -> list[GopPrimitives]:
    """All GOPs of a video, decoding only those that the cache lacks.

    Args:
        video: an opened video.
        side: S, side of the model's square input, pixels.
        cache: where to look and keep; None is the one shared by the process.

    Raises:
        CodecError: `undecodable_video`.
    """
    store = shared if cache is None else cache
    found = {gop.index: store.get(primitives_key(gop, side)) for gop in video.plan.gops}
    lacking = [gop for gop in video.plan.gops if found[gop.index] is None]
    if lacking:
        for gop in video.gops(side, only=lacking):
            found[gop.index] = gop if gop.undecoded else store.put(gop)
    gops = [gop for gop in found.values() if gop is not None]
    if all(gop.undecoded for gop in gops):
        raise undecodable()
    return gops
