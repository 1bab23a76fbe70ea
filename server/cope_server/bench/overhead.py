"""What our front end adds to vLLM's: the same text requests to both servers, in rounds that alternate."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx
import numpy as np

from cope_loadtest.client import make_client
from cope_loadtest.records import Record
from cope_server.bench.asking import ask, body, e2el_s, question, ttft_s
from cope_server.bench.intervals import difference

BARE, OURS = "bare", "cope"
TIMES: Mapping[str, Callable[[Record], float]] = {"ttft": ttft_s, "e2el": e2el_s}
QUANTILES = {"p50": 0.5, "p99": 0.99}
MARKS_S = {"p50": 0.003, "p99": 0.010}
_WARM_UP = 3  # requests of each user before the first round


async def measure(
    urls: Mapping[str, str],
    model: str,
    *,
    users: Sequence[int],
    rounds: int,
    requests: int,
    tokens: int,
    api_key: str | None = None,
    tick: Callable[[], object] = lambda: None,
) -> list[dict[str, Any]]:
    """Measure both servers at each number of users.

    Args:
        urls: base addresses of `BARE` and `OURS`.
        model: name at both.
        users: who send requests at a time, each the next one when the last is answered.
        rounds: of each server, in turns; who begins changes from round to round.
        requests: of all users together, in each round.
        tokens: length of each answer.
        api_key: of both servers.
        tick: called after each round of a server.

    Returns:
        One row per number of users, as `summary` makes it.

    Raises:
        ServerError: a request failed.
        ValueError: the servers did not do the same work, or one of them is not what it should be.
    """
    rows = []
    async with make_client(urls[BARE], api_key) as bare, make_client(urls[OURS], api_key) as ours:
        clients = {BARE: bare, OURS: ours}
        for count in users:
            for name in clients:
                await _round(clients[name], model, f"warm-up {count}", count, _WARM_UP * count, tokens)
            found: dict[str, list[list[Record]]] = {BARE: [], OURS: []}
            for number in range(rounds):
                for name in (BARE, OURS) if number % 2 else (OURS, BARE):
                    gc.collect()  # between the rounds and not within one
                    seed = f"{count} {number}"  # the same questions for both
                    found[name].append(await _round(clients[name], model, seed, count, requests, tokens))
                    tick()
            rows.append(summary(count, found[BARE], found[OURS]))
    return rows


async def _round(
    client: httpx.AsyncClient, model: str, seed: str, users: int, requests: int, tokens: int
) -> list[Record]:
    bodies = [body(model, question(f"{seed} {number}"), tokens) for number in range(requests)]
    return await ask(client, bodies, users)


def summary(users: int, bare: Sequence[Sequence[Record]], ours: Sequence[Sequence[Record]]) -> dict[str, Any]:
    """Both servers' times and their differences.

    Args:
        users: how many.
        bare, ours: the records, one sequence per round.

    Returns:
        users, requests (of each server), and of `TIMES` each of `QUANTILES`: bare_s, cope_s, difference_s (value, low,
        high), mark_s and kept.

    Raises:
        ValueError: the servers did not do the same work, or one of them is not what it should be.
    """
    _check(bare, ours)
    row: dict[str, Any] = {"users": users, "requests": sum(map(len, bare))}
    for name, time_of in TIMES.items():
        times = [[[time_of(record) for record in records] for records in side] for side in (bare, ours)]
        row[name] = {}
        for label, quantile in QUANTILES.items():
            apart = difference(times[0], times[1], quantile)
            row[name][label] = {
                "bare_s": round(float(np.quantile(times[0], quantile)), 6),
                "cope_s": round(float(np.quantile(times[1], quantile)), 6),
                "difference_s": apart.to_json(),
                "mark_s": MARKS_S[label],
                "kept": apart.value <= MARKS_S[label],
            }
    return row


def _check(bare: Sequence[Sequence[Record]], ours: Sequence[Sequence[Record]]) -> None:
    for plain, full in zip((r for side in bare for r in side), (r for side in ours for r in side), strict=True):
        for name in ("prompt_tokens", "completion_tokens"):
            if plain.usage.get(name) != full.usage.get(name):
                raise ValueError(f"{name} differ: {plain.usage.get(name)} bare, {full.usage.get(name)} ours")
        if "timings" in plain.usage or "timings" not in full.usage:
            raise ValueError("the bare server has our front end, or ours has none")
