"""What a question on an uploaded video waits for, once the server has read the video."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from cope_loadtest.client import make_client
from cope_loadtest.records import Record
from cope_loadtest.server_metrics import read_counters
from cope_server.bench.asking import ask, body, question, ttft_s
from cope_server.bench.intervals import difference
from cope_server.client import ServerError, delete_file, prefetch_state, upload, video_part
from cope_server.stages import STAGES

MARK_PREFILLED_S = 0.040
MARK_CACHED = 0.9
GOPS = 64
_TOKENS = 2  # of an answer: its first one is what counts
_WARM_UP = 2  # pairs of questions that are not counted
_POLL_S = 0.05
_PREFETCH_S = 600.0
_DECODED = "cope_codec_cache_misses_total"


def generated(seconds: int, seed: int = 0) -> bytes:
    """A clip with motion all along, small enough for an hour of it to be encoded in seconds: 192 x 144, 2 FPS."""
    from cope_codec import samples

    pictures = samples.scene(192, 144, seconds, 2, pan_px_s=(3.0, 1.0), seed=seed)
    return samples.encode(pictures, fps=2, gop=16, b_frames=0)


async def measure_prefilled(
    url: str,
    model: str,
    clip: Path,
    *,
    gops: int = GOPS,
    questions: int,
    api_key: str | None = None,
    tick: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Time to the first token of questions on a prefilled video, in turns with the same questions without it.

    Args:
        url: base address of the server.
        model: name there.
        clip: the video.
        gops: how many of its GOPs are sampled.
        questions: how many, each asked with and without the video.
        api_key: of the server.
        tick: called after each pair.

    Returns:
        seconds, gops and video_tokens as the server counted them; prefill_s, from the upload's answer to `completed`;
        medians with_s and without_s; difference_s (value, low, high), mark_s, kept; stages, medians with the video;
        cached_share, the smallest.

    Raises:
        ServerError: a request or the prefill failed.
    """
    options = {"max_gops": gops}
    pairs: list[list[Record]] = []
    async with make_client(url, api_key) as client, _uploaded(url, clip, "prefill", options) as (file_id, prefill_s):
        part = video_part(file_id, options)
        for number in range(questions + _WARM_UP):
            text = question(f"prefilled {number}")
            bodies = [body(model, text, _TOKENS, part), body(model, text, _TOKENS)]
            turn = 1 if number % 2 else -1
            pair = (await ask(client, bodies[::turn]))[::turn]
            if number >= _WARM_UP:
                pairs.append(pair)
                tick()
    seen, unseen = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    apart = difference([[ttft_s(r)] for r in unseen], [[ttft_s(r)] for r in seen], 0.5)
    account = seen[0].usage["video"]
    return {
        "seconds": account["seconds"],
        "gops": account["gops"],
        "video_tokens": account["i_tokens"] + account["p_tokens"],
        "questions": questions,
        "prefill_s": round(prefill_s, 3),
        "with_s": round(statistics.median(map(ttft_s, seen)), 6),
        "without_s": round(statistics.median(map(ttft_s, unseen)), 6),
        "difference_s": apart.to_json(),
        "mark_s": MARK_PREFILLED_S,
        "kept": apart.value <= MARK_PREFILLED_S,
        "stages": _stages(seen),
        "cached_share": round(min(cached_share(record.usage) for record in seen), 4),
    }


async def measure_second(
    url: str,
    model: str,
    clips: Sequence[Path],
    *,
    api_key: str | None = None,
    tick: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Two questions on each of some uploaded videos that the server has not seen: what the second one still costs.

    Args:
        url: base address of the server.
        model: name there.
        clips: the videos; no two of them may be the same.
        api_key: of the server.
        tick: called after each video.

    Returns:
        files; first and second, with median stages and ttft_s; decoded_gops of all second questions, None where the
        server does not count them; cached_share, the smallest; mark_share, kept.

    Raises:
        ServerError: a request failed.
    """
    asked: tuple[list[Record], list[Record]] = ([], [])
    decoded: list[float | None] = []
    async with make_client(url, api_key) as client:
        for number, clip in enumerate(clips):
            async with _uploaded(url, clip) as (file_id, _):
                for turn, records in enumerate(asked):
                    before = await read_counters(client)
                    text = question(f"second {number} {turn}")
                    records += await ask(client, [body(model, text, _TOKENS, video_part(file_id, {}))])
                    after = await read_counters(client)
                    if turn:
                        decoded.append(after[_DECODED] - before.get(_DECODED, 0) if _DECODED in after else None)
            tick()
    shares = [cached_share(record.usage) for record in asked[1]]
    counted = [count for count in decoded if count is not None]
    decoded_gops = round(sum(counted)) if len(counted) == len(decoded) else None
    first, second = ({"stages": _stages(side), "ttft_s": _median(map(ttft_s, side))} for side in asked)
    return {
        "files": len(clips),
        "first": first,
        "second": second,
        "decoded_gops": decoded_gops,
        "cached_share": round(min(shares), 4),
        "mark_share": MARK_CACHED,
        "kept": min(shares) >= MARK_CACHED and not decoded_gops,
    }


def cached_share(usage: Mapping[str, Any]) -> float:
    """Share of the video's tokens that came from the prefix cache, at least; all cached text counts as found first."""
    video = usage["video"]["i_tokens"] + usage["video"]["p_tokens"]
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    text = usage["prompt_tokens"] - video
    return float(min(max(cached - text, 0) / video, 1.0))


@asynccontextmanager
async def _uploaded(
    url: str, clip: Path, prefetch: str | None = None, options: Mapping[str, Any] | None = None
) -> AsyncIterator[tuple[str, float]]:
    """An uploaded file's id, and the seconds that its prefetch took; the file is deleted when the block ends."""

    def send() -> str:
        with clip.open("rb") as file:
            return upload(url, file, clip.name, prefetch=prefetch, options=options)

    file_id = await asyncio.to_thread(send)
    try:
        started = time.perf_counter()
        if prefetch is not None:
            await _completed(url, file_id)
        yield file_id, time.perf_counter() - started
    finally:
        await asyncio.to_thread(delete_file, url, file_id)


async def _completed(url: str, file_id: str) -> None:
    until = time.monotonic() + _PREFETCH_S
    while True:
        state = await asyncio.to_thread(prefetch_state, url, file_id)
        if state.get("status") == "completed":
            return
        if state.get("status") not in ("queued", "running") or time.monotonic() > until:
            raise ServerError(f"the video was not prefilled: {state}")
        await asyncio.sleep(_POLL_S)


def _stages(records: Sequence[Record]) -> dict[str, float | None]:
    """Median of each stage, seconds."""
    return {name: _median(record.usage["timings"][name] for record in records) for name in STAGES}


def _median(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.median(known), 6) if known else None
