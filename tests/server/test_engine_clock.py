from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
from requirements import require

from cope_server import clocks
from cope_server.engine_clock import ClockedEngine
from cope_server.stages import RequestClock, stage_times


def output(arrival: float | None = None, latency_s: float = 0.02) -> Any:
    """As vLLM's; the engine's own clock is that of another machine."""
    stats = None
    if arrival is not None:
        stats = SimpleNamespace(
            arrival_time=arrival, first_token_latency=latency_s, scheduled_ts=1000.0, first_token_ts=1000.015
        )
    return SimpleNamespace(prompt_token_ids=[1, 2, 3], metrics=stats)


class Engine:
    """Three outputs, 30 ms apart; it keeps statistics or does not."""

    model = "tiny"
    stats = True

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.closed = False

    async def generate(self, *arguments: Any, **more: Any) -> AsyncGenerator[Any, None]:
        self.calls.append((arguments, more))
        arrival = time.time()
        try:
            for _ in range(3):
                await asyncio.sleep(0.03)
                yield output(arrival if self.stats else None)
        finally:
            self.closed = True


@pytest.fixture
def clock() -> Iterator[RequestClock]:
    require("ENGINE", find_spec("vllm") is not None, "vLLM is not installed (make setup)")
    clock = RequestClock(time.perf_counter(), received=time.perf_counter())
    token = clocks.current.set(clock)
    yield clock
    clocks.current.reset(token)


def parameters(streamed: bool) -> Any:
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    return SamplingParams(output_kind=RequestOutputKind.DELTA if streamed else RequestOutputKind.FINAL_ONLY)


def generate(engine: Engine, streamed: bool = True, take: int = 3) -> list[Any]:
    async def take_some() -> list[Any]:
        outputs = ClockedEngine(engine).generate("prompt", parameters(streamed), "id", priority=1)
        taken = []
        async for one in outputs:
            taken.append(one)
            if len(taken) == take:
                break
        await outputs.aclose()
        return taken

    return asyncio.run(take_some())


def test_the_first_token_is_timed_by_differences_of_the_engines_clock(clock: RequestClock) -> None:
    engine = Engine()
    assert len(generate(engine)) == 3
    ((arguments, more),) = engine.calls
    assert (arguments[0], arguments[2], more) == ("prompt", "id", {"priority": 1})
    assert clock.handed_over is not None and clock.first_output is not None
    assert clock.first_output - clock.handed_over == pytest.approx(0.02, abs=0.01)
    assert clock.prefill_s == pytest.approx(0.015)
    assert clock.prompt_tokens == 3
    assert stage_times(clock)["queue"] == pytest.approx(0.005, abs=0.01)


def test_without_statistics_a_streams_first_output_tells(clock: RequestClock) -> None:
    engine = Engine()
    engine.stats = False
    generate(engine)
    assert clock.first_output is not None and clock.handed_over is not None
    assert 0.03 <= clock.first_output - clock.handed_over < 0.06
    assert clock.prefill_s is None


def test_without_statistics_an_answer_in_one_piece_has_no_first_token(clock: RequestClock) -> None:
    engine = Engine()
    engine.stats = False
    generate(engine, streamed=False)
    assert (clock.first_output, clock.ttft_s) == (None, None)
    assert clock.handed_over is not None


def test_only_the_first_of_several_calls_counts(clock: RequestClock) -> None:
    engine = Engine()
    generate(engine)
    first = clock.handed_over, clock.first_output
    generate(engine)
    assert (clock.handed_over, clock.first_output) == first


def test_a_request_that_is_given_up_ends_in_the_engine(clock: RequestClock) -> None:
    engine = Engine()
    assert len(generate(engine, take=1)) == 1
    assert engine.closed


def test_everything_else_is_the_clients_own() -> None:
    engine = Engine()
    clocked = ClockedEngine(engine)
    assert clocked.model == "tiny"
    assert clocks.current.get() is None
    assert isinstance(clocked.generate("prompt", None, "id"), AsyncGenerator)
    with pytest.raises(AttributeError):
        _ = clocked.nothing
