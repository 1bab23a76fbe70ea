"""Who extracts the videos of requests: the process itself, unless a server has put an executor in charge.

A pool spawns processes, which import the main module again: a program that merely makes a `vllm.LLM`, perhaps without
an `if __name__ == "__main__"`, must not get any by surprise. It also knows whose videos it reads. A server does not,
has a life time in which to start and end its workers, and can call them back when a client goes away.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

# Not above the functions at run time: this module is loaded in every vLLM process, also in the workers.
if TYPE_CHECKING:
    from cope_codec.executor import CodecExecutor
    from cope_codec.flights import Flights
    from cope_codec.options import VideoOptions
    from cope_model.loader import Known

_MOST_SLOTS = 100_000  # of remembered plans; about 20 MB


class KnownVideos:
    """Plans of files that cannot change, by name and options; those used last stay. For one event loop."""

    def __init__(self, most_slots: int = _MOST_SLOTS) -> None:
        self._most_slots, self._slots = most_slots, 0
        self._known: OrderedDict[tuple[str, VideoOptions], Known] = OrderedDict()

    def get(self, key: tuple[str, VideoOptions]) -> Known | None:
        """What is known of a file under these options."""
        known = self._known.get(key)
        if known is not None:
            self._known.move_to_end(key)
        return known

    def put(self, key: tuple[str, VideoOptions], known: Known) -> None:
        """Remember a file, and forget others if these are too many slots together."""
        if key in self._known:
            self._slots -= _slots(self._known.pop(key))
        self._known[key] = known
        self._slots += _slots(known)
        while self._slots > self._most_slots:
            self._slots -= _slots(self._known.popitem(last=False)[1])


def _slots(known: Known) -> int:
    return known.plan.i_frames + known.plan.p_frames


@dataclass(frozen=True, slots=True)
class Extraction:
    """An executor in charge.

    Attributes:
        executor: whose workers open and decode videos.
        flights: the process's primitives, those in the cache and those on their way.
        side: S, side of the model's square input, pixels.
        known: uploaded files that have been opened.
    """

    executor: CodecExecutor
    flights: Flights
    side: int
    known: KnownVideos = field(default_factory=KnownVideos)


_in_charge: Extraction | None = None


def install(executor: CodecExecutor, side: int) -> Extraction:
    """Have an executor extract the videos that are loaded asynchronously from here on; it stays the caller's to close.

    Args:
        executor: whose workers open and decode videos.
        side: S, side of the model's square input, pixels.
    """
    from cope_codec.flights import Flights

    global _in_charge
    _in_charge = Extraction(executor, Flights(), side)
    return _in_charge


def uninstall() -> None:
    """Extract in the process itself again."""
    global _in_charge
    _in_charge = None


def in_charge() -> Extraction | None:
    """The executor in charge; None where the process extracts itself."""
    return _in_charge
