"""The one interface to those who extract for others: open a video, decode some of its GOPs, ask how busy they are."""

from __future__ import annotations

import asyncio
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cope_codec.errors import CodecError
from cope_codec.groups import split
from cope_codec.index import PacketIndex
from cope_codec.limits import Limits
from cope_codec.options import VideoOptions
from cope_codec.plan import GopPlan, VideoPlan
from cope_codec.primitives import GopPrimitives
from cope_codec.video import MODEL_SIDE, Video, check_side, some_decoded

MOST_GROUP_GOPS = 8  # of one task: 8 GOPs of the default size are a result of 55 MB
# Of one task: 3 s at 720p, where a frame takes 1.5 ms. A film in 4K must not run into the wall time that is there for
# files which hang the decoder, and others wait for no worker longer than that.
MOST_GROUP_PIXELS = 2 * 10**9
START_S = 120.0  # for a worker to be warm
_TICK_S = 0.05


@dataclass(frozen=True, slots=True)
class PoolStats:
    """An executor at one moment.

    Attributes:
        workers: processes that are warm.
        busy: of these, how many are at work.
        queued: tasks that wait for a worker.
        oldest_s: how long the first of them has waited, seconds; 0 when none waits.
        restarts: workers started in place of one that died, hung, bloated or would not let go, since the beginning.
        outcomes: how many tasks ended how, since the beginning: `ok`, a `CodecError`'s code, or `bug`.
    """

    workers: int
    busy: int
    queued: int
    oldest_s: float
    restarts: int
    outcomes: Mapping[str, int]


def outcome_of(task: Future[Any]) -> str:
    """A finished task's key in `PoolStats.outcomes`."""
    if task.cancelled():
        return "cancelled"
    error = task.exception()
    return "ok" if error is None else error.code if isinstance(error, CodecError) else "bug"


class CodecExecutor(ABC):
    """Extracts in other processes; safe to use from several threads, and from asyncio.

    Every task is a future, and cancelling the future frees the worker. Futures raise `CodecError`.

    Attributes:
        size: workers, all of which may be given parts of one video.
        limits: what a video and a task may take.
    """

    size: int
    limits: Limits

    @abstractmethod
    def open_soon(self, source: str | Path | bytes, options: VideoOptions | None = None) -> Future[PooledVideo]:
        """Index and plan a video in a worker.

        Raises:
            CodecError: `queue_full`, `video_too_large`, or `invalid_video` when it is empty; everything else through
                the future.
            OSError: the path cannot be read.
        """

    @abstractmethod
    def submit(self, video: PooledVideo, side: int, gops: Sequence[GopPlan]) -> Future[list[GopPrimitives]]:
        """Decode some GOPs of a video in one worker, one after the other.

        Args:
            video: opened by this executor.
            side: S, side of the model's square input, a multiple of 4, pixels.
            gops: of the video's plan, in time order.
        """

    @abstractmethod
    def stats(self) -> PoolStats:
        """The executor now."""

    @abstractmethod
    def close(self) -> None:
        """Take back all tasks and end all workers; nothing of the executor is left afterwards."""

    def open(self, source: str | Path | bytes, options: VideoOptions | None = None) -> PooledVideo:
        """Index and plan a video in a worker, and wait for it.

        Raises:
            CodecError: the video or an option cannot be used, or the executor could not do it.
            OSError: the path cannot be read.
        """
        return self.open_soon(source, options).result()

    async def open_async(self, source: str | Path | bytes, options: VideoOptions | None = None) -> PooledVideo:
        """`open` without blocking the event loop; cancelling the coroutine frees the worker."""
        tasks: list[Future[PooledVideo]] = []
        left = threading.Event()

        def submit() -> None:
            tasks.append(self.open_soon(source, options))
            if left.is_set():
                tasks[0].cancel()

        try:
            await asyncio.to_thread(submit)
            return await asyncio.wrap_future(tasks[0])
        finally:
            left.set()  # the thread cannot be stopped: what it submits now, it takes back itself
            for task in tasks:
                task.cancel()

    async def extract(
        self, source: str | Path | bytes, options: VideoOptions | None = None, side: int = MODEL_SIDE
    ) -> tuple[PooledVideo, list[GopPrimitives]]:
        """Open a video and decode all its GOPs; cancelling the coroutine frees the workers.

        Raises:
            CodecError: the video or an option cannot be used, or the executor could not do it.
            OSError: the path cannot be read.
        """
        video = await self.open_async(source, options)
        waiting = deque(self.groups(video, video.plan.gops))
        running: deque[Future[list[GopPrimitives]]] = deque()
        found: list[GopPrimitives] = []
        try:
            while waiting or running:
                while waiting and len(running) <= self.size:
                    running.append(self.submit(video, side, waiting.popleft()))
                gops: list[GopPrimitives] = await asyncio.wrap_future(running[0])
                found += gops
                running.popleft()
        finally:
            for job in running:
                job.cancel()
        return video, list(some_decoded(iter(found)))

    def groups(self, video: Video, gops: Sequence[GopPlan]) -> list[Sequence[GopPlan]]:
        """Cut GOPs of a video into tasks that the workers can share."""
        packets = max(1, MOST_GROUP_PIXELS // (video.info.width * video.info.height))
        return split(gops, self.size, MOST_GROUP_GOPS, packets)

    def wait_until_warm(self, timeout_s: float = START_S) -> None:
        """Wait until every worker is ready.

        Raises:
            TimeoutError: they are not in time.
        """
        until = time.monotonic() + timeout_s
        while self.stats().workers < self.size:
            if time.monotonic() > until:
                raise TimeoutError(f"only {self.stats().workers} of {self.size} codec workers are warm")
            time.sleep(_TICK_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.size} workers, {self.stats()})"


class PooledVideo(Video):
    """A `Video` that was opened, and is decoded, by an executor's workers.

    Attributes:
        executor: whose workers.
        handle: what the executor gives its workers to read the video and its index from.
    """

    __slots__ = ("executor", "handle")
    executor: CodecExecutor
    handle: Any

    def __init__(
        self, source: str | Path | bytes, index: PacketIndex, plan: VideoPlan, executor: CodecExecutor, handle: Any
    ) -> None:
        super().__init__(source, index, plan)
        for name, value in (("executor", executor), ("handle", handle)):
            object.__setattr__(self, name, value)  # a `Video` is frozen

    def gops(
        self, side: int = MODEL_SIDE, *, only: Sequence[GopPlan] | None = None, threads: int = 1
    ) -> Iterator[GopPrimitives]:
        """As `Video.gops`, by several workers at a time; leaving the loop frees them. `threads` has no effect.

        Raises:
            CodecError: also `timeout`, `out_of_memory`, `worker_died`.
        """
        check_side(side)
        chosen = self.plan.gops if only is None else only
        gops = self._gops(side, chosen)
        return gops if only is not None else some_decoded(gops)

    def _gops(self, side: int, chosen: Sequence[GopPlan]) -> Iterator[GopPrimitives]:
        waiting = deque(self.executor.groups(self, chosen))
        running: deque[Future[list[GopPrimitives]]] = deque()
        try:
            while waiting or running:
                while waiting and len(running) <= self.executor.size:
                    running.append(self.executor.submit(self, side, waiting.popleft()))
                yield from running.popleft().result()
        finally:
            for job in running:
                job.cancel()
