"""Counters of the server's `/metrics`, where it has them: they tell whether cold was cold and warm was warm."""

from __future__ import annotations

import httpx

# Prefixes of names, labels passed over: what was found in a cache, and what was looked for.
COUNTERS = (
    "cope_codec_cache_hits_total",
    "cope_codec_cache_misses_total",
    "vllm:prefix_cache_hits_total",
    "vllm:prefix_cache_queries_total",
    "vllm:mm_cache_hits_total",
    "vllm:mm_cache_queries_total",
    "vllm:num_preemptions_total",
)


async def read_counters(client: httpx.AsyncClient) -> dict[str, float]:
    """Values now; empty if the server has none or does not answer."""
    try:
        response = await client.get("/metrics", timeout=5.0)
    except httpx.HTTPError:
        return {}
    return parse_counters(response.text) if response.status_code == 200 else {}


def parse_counters(text: str) -> dict[str, float]:
    """The counters in Prometheus' text format, summed over their labels."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        name = line.partition(" ")[0].partition("{")[0]
        if name in COUNTERS:
            try:
                found[name] = found.get(name, 0.0) + float(line.rsplit(" ", 1)[1])
            except (ValueError, IndexError):
                continue
    return found


def growth(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """By how much each counter grew."""
    return {name: after[name] - before.get(name, 0.0) for name in COUNTERS if name in after}
