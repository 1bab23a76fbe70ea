"""Who extracts the videos of requests: the process itself, unless a server has put an executor in charge.

A pool spawns processes, which import the main module again: a program that merely makes a `vllm.LLM`, perhaps without
an `if __name__ == "__main__"`, must not get any by surprise. It also knows whose videos it reads. A server does not,
has a life time in which to start and end its workers, and can call them back when a client goes away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

# Not above the functions at run time: this module is loaded in every vLLM process, also in the workers.
if TYPE_CHECKING:
    from cope_codec.executor import CodecExecutor
    from cope_codec.flights import Flights


@dataclass(frozen=True, slots=True)
class Extraction:
    """An executor in charge.

    Attributes:
        executor: whose workers open and decode videos.
        flights: the process's primitives, those in the cache and those on their way.
        side: S, side of the model's square input, pixels.
    """

    executor: CodecExecutor
    flights: Flights
    side: int


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
