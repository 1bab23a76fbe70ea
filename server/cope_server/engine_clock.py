"""The engine as the chat handler sees it, with an eye on when a request goes in and its first token comes out."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from cope_server.clocks import current
from cope_server.stages import RequestClock


class ClockedEngine:
    """vLLM's engine client, whose `generate` notes times on the clock of the request in whose context it is called.

    Everything else is the client's own. A request without a clock gets the client's generator itself.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def generate(self, prompt: Any, sampling_params: Any, request_id: str, **more: Any) -> Any:
        """As the client's; the call is the hand-over, for beams the first of them."""
        outputs = self._client.generate(prompt, sampling_params, request_id, **more)
        clock = current.get()
        if clock is None or clock.handed_over is not None:
            return outputs
        clock.handed_over = time.perf_counter()
        return _Noted(outputs, clock, time.time(), _is_streamed(sampling_params))


def _is_streamed(sampling_params: Any) -> bool:
    from vllm.sampling_params import RequestOutputKind

    kind: object = sampling_params.output_kind
    return kind is not RequestOutputKind.FINAL_ONLY


class _Noted:
    """The engine's outputs; the first one is looked at, the others cost one more call each."""

    def __init__(self, outputs: Any, clock: RequestClock, handed_over: float, streamed: bool) -> None:
        self._outputs, self._clock = outputs, clock
        self._handed_over, self._streamed = handed_over, streamed
        self._next = self._first

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    def __anext__(self) -> Any:
        return self._next()

    async def aclose(self) -> None:
        """End the request."""
        await self._outputs.aclose()

    async def _first(self) -> Any:
        self._next = self._outputs.__anext__
        output = await self._outputs.__anext__()
        note_output(self._clock, output, self._handed_over, self._streamed)
        return output


def note_output(clock: RequestClock, output: Any, handed_over: float, streamed: bool) -> None:
    """Take the time of the first token from the first output that the engine client hands out.

    An answer in one piece comes out as one output at its end. vLLM's statistics know when its first token had come into
    this process, by the wall clock.

    Args:
        clock: the request's.
        output: vLLM's `RequestOutput`.
        handed_over: time of the hand-over by the wall clock, seconds.
        streamed: the outputs come token by token.
    """
    now = time.perf_counter()
    if output.prompt_token_ids is not None:
        clock.prompt_tokens = len(output.prompt_token_ids)
    stats = output.metrics
    assert clock.handed_over is not None
    if stats is None or not stats.first_token_latency:
        clock.first_output = now if streamed else None
        return
    since = stats.arrival_time + stats.first_token_latency - handed_over
    clock.first_output = min(max(clock.handed_over + since, clock.handed_over), now)  # the wall clock may be set
    if stats.scheduled_ts and stats.first_token_ts >= stats.scheduled_ts:
        clock.prefill_s = stats.first_token_ts - stats.scheduled_ts
