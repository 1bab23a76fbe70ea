"""Worker processes for strangers' videos: what a file breaks, it breaks in a worker that is replaced.

    with CodecPool() as pool:
        video = pool.open(data, VideoOptions(fps=1))
        for gop in video.gops(384):
            ...

A `PooledVideo` is used like a `Video`; its GOPs are decoded by several workers at a time and are the same to the byte.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

from cope_codec import sandbox, worker
from cope_codec.answers import Opened, read_gops, read_opened
from cope_codec.errors import CodecError
from cope_codec.executor import CodecExecutor, PooledVideo, PoolStats, outcome_of
from cope_codec.handover import Handover
from cope_codec.index import PacketIndex
from cope_codec.jobs import Following, Job, without_frames
from cope_codec.limits import DEFAULT_LIMITS, Limits
from cope_codec.options import VideoOptions
from cope_codec.pipes import Answer
from cope_codec.plan import GopPlan
from cope_codec.primitives import GopPrimitives
from cope_codec.sandbox import Sandboxed
from cope_codec.shared import SharedFd, anonymous_file, counting_descriptors, seal, share_source, write
from cope_codec.slots import Outcome, Slot, outcome, send_signal
from cope_codec.wire import pack, unpack

__all__ = ["CodecPool", "PoolStats", "PooledVideo"]

_TICK_S = 0.05
_REST_S = 1.0  # after a failure that nobody has thought of
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Handle:
    """Where a pooled video's workers read it from."""

    input: SharedFd
    index: SharedFd


class CodecPool(CodecExecutor):
    """Pre-warmed worker processes of this machine behind a bounded queue.

    Args:
        workers: processes; None is one per core.
        limits: what a video and a task may take.
        max_queue: tasks that may wait; `open` is refused with `queue_full` beyond it. Videos that were let in may
            exceed it by their own groups of GOPs, of which no more than there are workers, and one, wait at a time.
        max_queue_bytes: memory that waiting videos may hold which were given as bytes; `queue_full` beyond it, unless
            no other one waits.
        sandboxed: take from the workers all that decoding does not need, where the kernel can; `"require"` starts none
            where it cannot.

    Raises:
        RuntimeError: a sandbox is required and this machine lacks what it takes.
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        limits: Limits = DEFAULT_LIMITS,
        max_queue: int = 256,
        max_queue_bytes: int = 2 << 30,
        sandboxed: Sandboxed = True,
    ) -> None:
        if workers is None:
            workers = len(os.sched_getaffinity(0))
        if workers < 1 or max_queue < 1:
            raise ValueError("a pool needs at least one worker and one place to wait")
        if sandboxed == "require":
            sandbox.require()
        self.limits, self.size = limits, workers
        self.max_queue, self.max_queue_bytes = max_queue, max_queue_bytes
        self._coming: list[int] = []  # bytes of each video that was let in and is being copied
        self._lock = threading.RLock()
        self._queue: deque[Job] = deque()
        self._warm: set[int] = set()
        self._started = 0
        self._outcomes: Counter[str] = Counter()
        self._closed = threading.Event()
        self._handover = Handover(self._on_fetched, self._on_joined, self._on_left)
        self._slots = [Slot(self._handover.address, limits, sandboxed) for _ in range(workers)]
        self._keeper = threading.Thread(target=self._keep, name="cope-codec-keeper", daemon=True)
        self._keeper.start()

    # What users call.

    def open_soon(self, source: str | Path | bytes, options: VideoOptions | None = None) -> Future[PooledVideo]:
        """See `CodecExecutor.open_soon`."""
        copied = len(source) if isinstance(source, bytes) else 0
        if copied > self.limits.max_bytes:
            raise CodecError("video_too_large", f"the video has {copied} bytes")
        read = partial(read_opened, options=options)
        with self._let_in(copied):
            with counting_descriptors():
                shared = SharedFd(share_source(source))
            job = self.run_soon(worker.open_source, (options, self.limits), [shared], read, copied)

        def opened(found: Opened) -> PooledVideo:
            with counting_descriptors():
                index = SharedFd(anonymous_file())
            for at, piece in pack(found.index, PacketIndex):
                write(index.fd, piece, at)
            seal(index.fd)  # all workers that decode this video share it
            return PooledVideo(source, found.index, found.plan, self, _Handle(shared, index))

        return Following(job, opened)

    @contextlib.contextmanager
    def _let_in(self, copied: int) -> Iterator[None]:
        """Hold a place in the queue for a video of so many bytes while it is copied."""
        with self._lock:
            places = [job.copied for job in self._queue] + self._coming
            if len(places) >= self.max_queue:
                raise CodecError("queue_full", f"{len(places)} video tasks are waiting already; try again later")
            held = sum(places)
            if copied and held and held + copied > self.max_queue_bytes:
                raise CodecError("queue_full", f"videos of {held >> 20} MiB are waiting already; try again later")
            self._coming.append(copied)
        try:
            yield
        finally:
            with self._lock:
                self._coming.remove(copied)

    def submit(self, video: PooledVideo, side: int, gops: Sequence[GopPlan]) -> Future[list[GopPrimitives]]:
        """See `CodecExecutor.submit`."""
        plan = replace(video.plan, gops=tuple(gops))
        files = [video.handle.input, video.handle.index]
        read = partial(read_gops, index=video.index, plan=video.plan, side=side, gops=gops)
        return self.run_soon(worker.extract_gops, (plan, side, self.limits), files, read)

    def stats(self) -> PoolStats:
        """The pool now."""
        with self._lock:
            oldest = time.monotonic() - self._queue[0].submitted_s if self._queue else 0.0
            busy = sum(slot.job is not None and slot.job.pid is not None for slot in self._slots)
            restarts = max(0, self._started - self.size)
            return PoolStats(len(self._warm), busy, len(self._queue), oldest, restarts, dict(self._outcomes))

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
        with contextlib.ExitStack() as rest:  # all of it, in reverse order, whatever fails
            rest.callback(self._handover.close)
            for job in jobs:
                error = CodecError("cancelled", "the codec pool was closed")
                rest.callback(self._settle, job, Outcome(error=error))
            for slot in self._slots:
                rest.callback(slot.end)

    # Tasks.

    def run_soon(
        self,
        function: Callable[..., object],
        arguments: tuple[Any, ...],
        inputs: Sequence[SharedFd],
        read: Callable[[memoryview], object] | None = None,
        copied: int = 0,
    ) -> Job:
        """Have a function of `cope_codec.worker` called in a worker.

        Args:
            function: called with the descriptors of `inputs`, as they are in the worker, and with `arguments`.
            arguments: what can be pickled.
            inputs: files to hand over.
            read: makes the result of the memory that the worker has written, which is sealed; without it, it is
                unpacked as the type that the function's annotation says.
            copied: memory that `inputs` hold for this task alone, bytes.

        Raises:
            CodecError: `cancelled` when the pool is closed; everything else through the future.
        """
        if self._closed.is_set():
            raise CodecError("cancelled", "the codec pool is closed")
        read = read or partial(unpack, kind=get_type_hints(function)["return"])
        job = Job(pickle.dumps((function, arguments), protocol=5), inputs, read, self._take_back, copied)
        with self._lock:
            closed = self._closed.is_set()
            if not closed:
                self._queue.append(job)
        if closed:
            self._settle(job, Outcome(error=CodecError("cancelled", "the codec pool is closed")))
        self._pump()
        return job

    def _pump(self) -> None:
        """Give waiting tasks to free workers."""
        failed: list[tuple[Job, Exception]] = []
        with self._lock:
            for slot in self._slots:
                if slot.free and self._queue and not failed and not self._closed.is_set():
                    job = self._queue.popleft()
                    try:
                        with counting_descriptors():
                            self._make_files(job)
                    except (OSError, CodecError) as problem:
                        failed.append((job, problem))
                    else:
                        self._start(slot, job)
        for job, error in failed:
            self._settle(job, Outcome(error=error))

    def _make_files(self, job: Job) -> None:
        """Make what a task needs beside its inputs; tasks that wait have none of it, since descriptors are scarce."""
        asked_fd = anonymous_file()
        try:
            write(asked_fd, job.request)
            job.result_fd = anonymous_file()
            job.token = self._handover.offer([asked_fd, job.result_fd, *(file.fd for file in job.inputs)])
        finally:
            os.close(asked_fd)

    def _drop_files(self, job: Job) -> None:
        self._handover.withdraw(job.token)
        result_fd, job.token, job.result_fd = job.result_fd, b"", -1
        if result_fd >= 0:
            os.close(result_fd)

    def _start(self, slot: Slot, job: Job) -> None:
        slot.job = job
        job.started_s = time.monotonic()
        try:
            running = slot.schedule(job)
        except RuntimeError:  # broken: the keeper will build it again
            slot.job = None
            self._wait_again(job)
            slot.condemned = True
            return
        only = [job]  # emptied: pebble's threads keep their last futures, and with these the task and its result
        running.add_done_callback(lambda done: self._finished(slot, only.pop(), done))

    def _wait_again(self, job: Job) -> None:
        self._drop_files(job)
        self._queue.appendleft(job)

    def _finished(self, slot: Slot, job: Job, done: Future[Answer]) -> None:
        """Pebble is done with a task, one way or the other; called in a thread of its."""
        with self._lock:
            if slot.job is not job:
                return  # the keeper has given it up
            job.answered = True
        result = outcome(job, done, self.limits)
        with self._lock:
            if slot.job is not job:
                return  # the pool is being closed
            slot.job = None
            failed = not done.cancelled() and done.exception() is not None
            if job.pid is not None and failed:
                self._warm.discard(job.pid)  # its connection will say so too, but later
            if result.suspect:
                slot.condemned = True  # the keeper ends it and builds it again
                if job.pid is not None:
                    self._warm.discard(job.pid)
                    send_signal(job.pid, signal.SIGKILL)
            # The worker may have died before the task reached it.
            repeat = failed and not self._closed.is_set() and job.repeat()
            if repeat:
                self._wait_again(job)
        try:
            self._pump()  # first, so that the worker does not wait for the callbacks of whoever waits for this
        finally:
            if not repeat:
                self._settle(job, result)

    def _settle(self, job: Job, result: Outcome) -> None:
        """Set the future, and close what belonged to the task."""
        self._drop_files(job)
        job.inputs = ()  # whoever keeps the future does not keep the video open
        if job.set_running_or_notify_cancel():
            if result.error is None:
                job.set_result(result.value)
            else:
                job.set_exception(without_frames(result.error))
        with self._lock:
            self._outcomes[outcome_of(job)] += 1

    def _take_back(self, job: Job) -> None:
        """A future was cancelled."""
        with self._lock:
            if job in self._queue:
                self._queue.remove(job)
                waiting = True
            else:
                waiting = False
                job.cancelled_s = time.monotonic()
                if job.pid is not None and any(slot.job is job for slot in self._slots):
                    send_signal(job.pid, worker.CANCEL_SIGNAL)
        if waiting:
            self._settle(job, Outcome())
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
                        send_signal(pid, worker.CANCEL_SIGNAL)

    def _keep(self) -> None:
        """Kill what will not let go, and build again what pebble gave up."""
        while not self._closed.wait(_TICK_S):
            for slot in self._slots:
                now = time.monotonic()
                if now < slot.rests_until_s:
                    continue
                try:
                    self._mend(slot, now)
                except (OSError, BrokenExecutor):
                    pass  # no descriptors are left for a new worker: the next tick tries again
                except Exception:  # noqa: BLE001 - without the keeper, no worker would be mended any more
                    _log.exception("a codec worker could not be replaced; in %g s once more", _REST_S)
                    slot.rests_until_s = now + _REST_S
            try:
                self._pump()
            except Exception:  # noqa: BLE001 - as above
                _log.exception("no task could be given to a codec worker")

    def _mend(self, slot: Slot, now: float) -> None:
        with self._lock:
            # Whoever takes a task out of its slot settles it, and nobody else: `_finished` may come at any moment.
            job = slot.job
            if job is not None and job.answered:
                return  # `_finished` is at it
            stuck = job is not None and slot.is_stuck(job, now)
            if not (stuck or slot.broken or slot.condemned):
                return
            slot.condemned = True  # until it is built, however often that takes
            slot.job = None
            if job is not None and not stuck and not self._closed.is_set() and job.repeat():
                self._wait_again(job)
                job = None
        try:
            slot.end()
        finally:
            if job is not None:
                self._settle(job, Outcome(error=CodecError("worker_died", "the worker stopped answering")))
        slot.build()
