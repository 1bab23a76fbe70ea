"""Worker processes for strangers' videos: what a file breaks, it breaks in a worker that is replaced.

    with CodecPool() as pool:
        video = pool.open(data, VideoOptions(fps=1))
        for gop in video.gops(384):
            ...

A `PooledVideo` is used like a `Video`; its GOPs are decoded by several workers at a time and are the same to the byte.

Each worker is a `pebble.ProcessPool` of its own. Pebble starts, times and replaces the process; with several workers
in one pebble pool, they would share a pipe and its lock, and pebble 5.2 gives up the whole pool when an idle worker
dies and waits a minute when one dies with the lock in its hands.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, cast, get_args

import pebble

from cope_codec import worker
from cope_codec.errors import CodecError, CodecErrorCode
from cope_codec.groups import split
from cope_codec.handover import Handover
from cope_codec.limits import DEFAULT_LIMITS, Limits
from cope_codec.options import VideoOptions
from cope_codec.plan import GopPlan, VideoPlan
from cope_codec.primitives import GopPrimitives
from cope_codec.shared import anonymous_file, dump, load, share_source
from cope_codec.video import MODEL_SIDE, Video, check_side, some_decoded

MOST_GROUP_GOPS = 8  # of one task: 8 GOPs of the default size are a result of 55 MB
_TICK_S = 0.05
_CANCEL_GRACE_S = 0.1  # a worker that has not let go of a cancelled task by then is killed
_STUCK_S = 5.0  # beyond the wall time: pebble itself did not notice
_START_S = 120.0  # for a worker to be warm


@dataclass(frozen=True, slots=True)
class PoolStats:
    """A pool at one moment.

    Attributes:
        workers: processes that are warm.
        busy: of these, how many are at work.
        queued: tasks that wait for a worker.
        oldest_s: how long the first of them has waited, seconds; 0 when none waits.
        restarts: workers started in place of one that died, hung, bloated or would not let go, since the beginning.
    """

    workers: int
    busy: int
    queued: int
    oldest_s: float
    restarts: int


class _Job(Future[Any]):
    """A task on its way; cancelling it takes it out of the queue or away from its worker."""

    def __init__(self, pool: CodecPool, token: bytes, result_fd: int) -> None:
        super().__init__()
        self.pool, self.token, self.result_fd = pool, token, result_fd
        self.submitted_s = self.started_s = time.monotonic()
        self.cancelled_s: float | None = None
        self.fetched_s: float | None = None
        self.pid: int | None = None
        self.again = True  # may be given to another worker, once, if it never reached this one

    def cancel(self) -> bool:
        """Take the task back; False when it is done already."""
        if not super().cancel():
            return False
        self.pool._take_back(self)
        return True


@dataclass(eq=False)
class _Slot:
    """One worker's place."""

    pebble: Any = None
    job: _Job | None = None
    rebuilding: bool = field(default=False)


class CodecPool:
    """Pre-warmed worker processes behind a bounded queue; safe to use from several threads, and from asyncio.

    Args:
        workers: processes; None is one per core.
        limits: what a video and a task may take.
        max_queue: tasks that may wait; `open` is refused with `queue_full` beyond it. Videos that were let in may
            exceed it by their own groups of GOPs, of which no more than there are workers, and one, wait at a time.
        sandboxed: take files and network from the workers, where the kernel can.
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        limits: Limits = DEFAULT_LIMITS,
        max_queue: int = 256,
        sandboxed: bool = True,
    ) -> None:
        if workers is None:
            workers = len(os.sched_getaffinity(0))
        if workers < 1 or max_queue < 1:
            raise ValueError("a pool needs at least one worker and one place to wait")
        self.limits, self.max_queue, self.size = limits, max_queue, workers
        self._sandboxed = sandboxed
        self._lock = threading.RLock()
        self._queue: deque[_Job] = deque()
        self._warm: set[int] = set()
        self._started = 0
        self._closed = threading.Event()
        self._handover = Handover(self._on_fetched, self._on_joined, self._on_left)
        self._slots = [_Slot() for _ in range(workers)]
        for slot in self._slots:
            self._build(slot)
        self._keeper = threading.Thread(target=self._keep, name="cope-codec-keeper", daemon=True)
        self._keeper.start()

    def __enter__(self) -> CodecPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"CodecPool({self.size} workers, {self.stats()})"

    # What users call.

    def open_soon(self, source: str | Path | bytes, options: VideoOptions | None = None) -> Future[PooledVideo]:
        """Index and plan a video in a worker.

        Raises:
            CodecError: `queue_full`, `video_too_large`, or `invalid_video` when it is empty; everything else through
                the future.
            OSError: the path cannot be read.
        """
        with self._lock:
            if len(self._queue) >= self.max_queue:
                raise CodecError("queue_full", f"{len(self._queue)} video tasks are waiting already; try again later")
        if isinstance(source, bytes) and len(source) > self.limits.max_bytes:
            raise CodecError("video_too_large", f"the video has {len(source)} bytes")
        shared = _SharedFd(share_source(source))
        job = self._submit(worker.open_source, (options, self.limits), [shared.fd])
        opened: Future[PooledVideo] = _Following(job)

        def finish(_: Future[Any]) -> None:
            if job.cancelled():
                opened.cancel()
                return
            error = job.exception()
            if error is None:
                index, plan = job.result()
                index_fd = _SharedFd(anonymous_file())
                dump(index_fd.fd, index)
                video = PooledVideo(source, index, plan, pool=self, input_fd=shared, index_fd=index_fd)
            if opened.set_running_or_notify_cancel():
                if error is None:
                    opened.set_result(video)
                else:
                    opened.set_exception(error)

        job.add_done_callback(finish)
        return opened

    def open(self, source: str | Path | bytes, options: VideoOptions | None = None) -> PooledVideo:
        """Index and plan a video in a worker, and wait for it.

        Raises:
            CodecError: the video or an option cannot be used, or the pool could not do it.
            OSError: the path cannot be read.
        """
        return self.open_soon(source, options).result()

    def submit(self, video: PooledVideo, side: int, gops: Sequence[GopPlan]) -> Future[list[GopPrimitives]]:
        """Decode some GOPs of a video in one worker, one after the other.

        Args:
            video: opened by this pool.
            side: S, side of the model's square input, a multiple of 4, pixels.
            gops: of the video's plan, in time order.
        """
        plan = replace(video.plan, gops=tuple(gops))
        return self._submit(worker.extract_gops, (plan, side, self.limits), [video.input_fd.fd, video.index_fd.fd])

    async def extract(
        self, source: str | Path | bytes, options: VideoOptions | None = None, side: int = MODEL_SIDE
    ) -> tuple[PooledVideo, list[GopPrimitives]]:
        """Open a video and decode all its GOPs; cancelling the coroutine frees the workers.

        Raises:
            CodecError: the video or an option cannot be used, or the pool could not do it.
            OSError: the path cannot be read.
        """
        video = await asyncio.wrap_future(await asyncio.to_thread(self.open_soon, source, options))
        groups = split(video.plan.gops, self.size, MOST_GROUP_GOPS)
        jobs = [asyncio.wrap_future(self.submit(video, side, group)) for group in groups]
        try:
            found = [gop for gops in await asyncio.gather(*jobs) for gop in gops]
        finally:
            for job in jobs:
                job.cancel()
        return video, list(some_decoded(iter(found)))

    def stats(self) -> PoolStats:
        """The pool now."""
        with self._lock:
            oldest = time.monotonic() - self._queue[0].submitted_s if self._queue else 0.0
            busy = sum(slot.job is not None and slot.job.pid is not None for slot in self._slots)
            return PoolStats(len(self._warm), busy, len(self._queue), oldest, max(0, self._started - self.size))

    def wait_until_warm(self, timeout_s: float = _START_S) -> None:
        """Wait until every worker is ready.

        Raises:
            TimeoutError: they are not in time.
        """
        until = time.monotonic() + timeout_s
        while self.stats().workers < self.size:
            if time.monotonic() > until:
                raise TimeoutError(f"only {self.stats().workers} of {self.size} codec workers are warm")
            time.sleep(_TICK_S)

    def pids(self) -> list[int]:
        """Process ids of the warm workers."""
        with self._lock:
            return sorted(self._warm)

    def close(self) -> None:
        """Take back all tasks and end all workers; nothing of the pool is left afterwards."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._keeper.join()
        with self._lock:
            jobs = [*self._queue, *(slot.job for slot in self._slots if slot.job is not None)]
            self._queue.clear()
            for slot in self._slots:
                slot.job = None  # whatever pebble says of it comes too late
        for slot in self._slots:
            self._end(slot.pebble)
        for job in jobs:
            self._settle(job, CodecError("cancelled", "the codec pool was closed"))
        self._handover.close()

    # Tasks.

    def _submit(self, function: Callable[..., object], arguments: tuple[Any, ...], inputs: Sequence[int]) -> _Job:
        if self._closed.is_set():
            raise CodecError("cancelled", "the codec pool is closed")
        request_fd, result_fd = anonymous_file(), anonymous_file()
        try:
            dump(request_fd, (function, arguments))
            token = self._handover.offer([request_fd, result_fd, *inputs])
        except BaseException:
            os.close(result_fd)
            raise
        finally:
            os.close(request_fd)
        job = _Job(self, token, result_fd)
        with self._lock:
            closed = self._closed.is_set()
            if not closed:
                self._queue.append(job)
        if closed:
            self._settle(job, CodecError("cancelled", "the codec pool is closed"))
        self._pump()
        return job

    def _pump(self) -> None:
        """Give waiting tasks to free workers."""
        with self._lock:
            for slot in self._slots:
                if slot.job is None and not slot.rebuilding and self._queue and not self._closed.is_set():
                    self._start(slot, self._queue.popleft())

    def _start(self, slot: _Slot, job: _Job) -> None:
        slot.job = job
        job.started_s = time.monotonic()
        try:
            running = slot.pebble.schedule(worker.run, args=(job.token,), timeout=self.limits.wall_s)
        except RuntimeError:  # broken: the keeper will build it again
            slot.job = None
            self._queue.appendleft(job)
            slot.rebuilding = True
            return
        running.add_done_callback(lambda done: self._finished(slot, job, done))

    def _finished(self, slot: _Slot, job: _Job, done: Future[worker.Answer]) -> None:
        """Pebble is done with a task, one way or the other; called in a thread of its."""
        with self._lock:
            if slot.job is not job:
                return  # the keeper has given it up
            slot.job = None
            if job.pid is not None and not done.cancelled() and done.exception() is not None:
                self._warm.discard(job.pid)  # its connection will say so too, but later
            lost = not done.cancelled() and done.exception() is not None and job.fetched_s is None
            if lost and job.again and not job.cancelled() and not self._closed.is_set():
                job.again = False  # the worker died before the task reached it
                self._queue.appendleft(job)
                job = None  # type: ignore[assignment]
        if job is not None:
            self._settle(job, _outcome(done, self.limits))
        self._pump()

    def _settle(self, job: _Job, error: BaseException | None) -> None:
        """Set the future, and close what belonged to the task."""
        self._handover.withdraw(job.token)
        value = None
        try:
            if error is None and not job.cancelled():
                value = load(job.result_fd)
        except Exception as problem:  # noqa: BLE001 - nobody else would hear of it, and the caller waits
            error = problem
        finally:
            os.close(job.result_fd)
        if job.set_running_or_notify_cancel():
            if error is None:
                job.set_result(value)
            else:
                job.set_exception(error)

    def _take_back(self, job: _Job) -> None:
        """A future was cancelled."""
        with self._lock:
            if job in self._queue:
                self._queue.remove(job)
                waiting = True
            else:
                waiting = False
                job.cancelled_s = time.monotonic()
                if job.pid is not None and any(slot.job is job for slot in self._slots):
                    _signal(job.pid, worker.CANCEL_SIGNAL)
        if waiting:
            self._settle(job, None)
        else:
            self._handover.withdraw(job.token)

    # Workers.

    def _on_joined(self, pid: int) -> None:
        with self._lock:
            self._warm.add(pid)
            self._started += 1

    def _on_left(self, pid: int) -> None:
        with self._lock:
            self._warm.discard(pid)
            for slot in self._slots:
                if slot.job is not None and slot.job.pid == pid:
                    slot.job.pid = None  # the number may soon be somebody else's

    def _on_fetched(self, token: bytes, pid: int) -> None:
        with self._lock:
            for slot in self._slots:
                if slot.job is not None and slot.job.token == token:
                    slot.job.pid, slot.job.fetched_s = pid, time.monotonic()
                    if slot.job.cancelled_s is not None:
                        slot.job.cancelled_s = time.monotonic()
                        _signal(pid, worker.CANCEL_SIGNAL)

    def _build(self, slot: _Slot) -> None:
        slot.pebble = pebble.ProcessPool(
            max_workers=1,
            initializer=worker.initialize,
            initargs=(self._handover.address, self.limits, self._sandboxed),
            context=multiprocessing.get_context("spawn"),
        )
        _ = slot.pebble.active  # starts the process now, not with the first task
        slot.rebuilding = False

    @staticmethod
    def _end(pool: Any) -> None:
        pool.stop()
        pool.join()

    def _keep(self) -> None:
        """Kill what will not let go, and build again what pebble gave up."""
        while not self._closed.wait(_TICK_S):
            now = time.monotonic()
            with self._lock:
                slots = [(slot, slot.job) for slot in self._slots]
            for slot, job in slots:
                with self._lock:
                    stuck = job is not None and slot.job is job and self._is_stuck(job, now)
                    broken = stuck or not slot.pebble.active
                    if broken:
                        slot.rebuilding = True
                        slot.job = None
                if not broken:
                    continue
                self._end(slot.pebble)
                self._build(slot)
                if job is not None:
                    self._settle(job, CodecError("worker_died", "the worker stopped answering"))
            self._pump()

    def _is_stuck(self, job: _Job, now: float) -> bool:
        """Kill the worker of a cancelled task; True for a task that even pebble has lost."""
        if job.cancelled_s is not None and job.pid is not None and now - job.cancelled_s > _CANCEL_GRACE_S:
            _signal(job.pid, signal.SIGKILL)
        if job.fetched_s is None:
            return now - job.started_s > _START_S
        return now - job.fetched_s > self.limits.wall_s + _STUCK_S


def _outcome(done: Future[worker.Answer], limits: Limits) -> BaseException | None:
    """What became of a task: None is well."""
    if done.cancelled():
        return CodecError("cancelled", "the task was taken back")
    error = done.exception()
    if error is None:
        code, message, param = done.result()
        if not code:
            return None
        if code in get_args(CodecErrorCode):
            return CodecError(cast(CodecErrorCode, code), message, param=param)
        return RuntimeError(f"in a codec worker: {message}")
    if isinstance(error, pebble.ProcessExpired):
        if error.exitcode == worker.OUT_OF_MEMORY_EXIT:
            return CodecError("out_of_memory", f"the video needs more than {limits.memory_bytes >> 20} MiB to decode")
        return CodecError("worker_died", f"the worker process ended with code {error.exitcode}")
    if isinstance(error, TimeoutError):
        return CodecError("timeout", f"the video was not decoded within {limits.wall_s:g} s")
    return CodecError("worker_died", f"the worker process ended: {type(error).__name__}")


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


class _SharedFd:
    """A descriptor that is closed with the last reference to it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.fd)


class _Following(Future[Any]):
    """The future of what comes of a job; cancelling it cancels the job."""

    def __init__(self, job: _Job) -> None:
        super().__init__()
        self._job = job

    def cancel(self) -> bool:
        if not super().cancel():
            return False
        self._job.cancel()
        return True


class PooledVideo(Video):
    """A `Video` that was opened, and is decoded, by a pool's workers."""

    __slots__ = ("index_fd", "input_fd", "pool")
    pool: CodecPool
    input_fd: _SharedFd
    index_fd: _SharedFd

    def __init__(
        self,
        source: str | Path | bytes,
        index: Any,
        plan: VideoPlan,
        *,
        pool: CodecPool,
        input_fd: _SharedFd,
        index_fd: _SharedFd,
    ) -> None:
        super().__init__(source, index, plan)
        for name, value in (("pool", pool), ("input_fd", input_fd), ("index_fd", index_fd)):
            object.__setattr__(self, name, value)  # a `Video` is frozen

    def gops(
        self, side: int = MODEL_SIDE, *, only: Sequence[GopPlan] | None = None, threads: int = 1
    ) -> Iterator[GopPrimitives]:
        """Decode GOPs in the workers and yield them in time order; leaving the loop frees the workers.

        Args:
            side: S, side of the model's square input, pixels.
            only: the GOPs of `plan` to decode, in time order; None is all.
            threads: not used: one worker decodes with one thread.

        Raises:
            CodecError: `undecodable_video` when no frame can be decoded, `timeout`, `out_of_memory`, `worker_died`.
            ValueError: `side` is not a positive multiple of 4.
        """
        check_side(side)
        chosen = self.plan.gops if only is None else only
        gops = self._gops(side, chosen)
        return gops if only is not None else some_decoded(gops)

    def _gops(self, side: int, chosen: Sequence[GopPlan]) -> Iterator[GopPrimitives]:
        waiting = deque(split(chosen, self.pool.size, MOST_GROUP_GOPS))
        running: deque[Future[list[GopPrimitives]]] = deque()
        try:
            while waiting or running:
                while waiting and len(running) <= self.pool.size:
                    running.append(self.pool.submit(self, side, waiting.popleft()))
                yield from running.popleft().result()
        finally:
            for job in running:
                job.cancel()
