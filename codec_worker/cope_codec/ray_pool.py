"""The pool's interface with the machines of a Ray cluster behind it (extra `ray`).

    ray.init(address="auto")
    with RayPool(workers=16) as pool:
        video = pool.open(data)

Each Ray actor runs a `CodecPool` of one worker, so that a video meets the same limits, sandbox and replacement as on
one machine, and actors only pass on bytes. A video and its index go to Ray's object store once.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
from ray.exceptions import RayActorError, RayError, TaskCancelledError

from cope_codec import worker
from cope_codec.answers import Opened, read_gops, read_opened
from cope_codec.errors import CodecError, CodecErrorCode, unexpected
from cope_codec.executor import CodecExecutor, PooledVideo, PoolStats, outcome_of
from cope_codec.index import PacketIndex
from cope_codec.jobs import Following
from cope_codec.limits import DEFAULT_LIMITS, Limits
from cope_codec.options import VideoOptions
from cope_codec.plan import GopPlan, VideoPlan
from cope_codec.pool import CodecPool
from cope_codec.primitives import GopPrimitives
from cope_codec.sandbox import Sandboxed
from cope_codec.shared import SharedFd, anonymous_file, seal, write
from cope_codec.wire import packed

_Bytes = npt.NDArray[np.uint8]
_KEPT_INPUTS = 4  # videos and indexes that an actor keeps as files for its worker: the GOPs of one come in a row
_CLOSE_S = 10.0
_RETRY_S = 1.0
_TRIES = 3  # of a task whose actor is lost: that is never the video's doing, which only reaches the actor's worker


@dataclass(frozen=True, slots=True)
class _Answer:
    """What an actor sends back: the worker's result as it was written, or why there is none."""

    restarts: int
    memory: _Bytes | None = None
    code: CodecErrorCode | None = None
    message: str = ""
    param: str | None = None


class _Actor:
    """Runs in a Ray process: hands tasks to the one worker of its own pool. Its methods are coroutines of one loop."""

    def __init__(self, limits: Limits, sandboxed: Sandboxed) -> None:
        self._limits = limits
        self._pool = CodecPool(1, limits=limits, sandboxed=sandboxed)
        self._inputs: OrderedDict[str, SharedFd] = OrderedDict()

    async def ready(self) -> None:
        """Returns when the worker is warm."""
        await asyncio.to_thread(self._pool.wait_until_warm)

    async def end(self) -> None:
        """Never returns: Ray ends the wait when this process ends, which tells the pool of an idle actor's end, too."""
        await asyncio.Event().wait()

    async def open(self, name: str, video: _Bytes, options: VideoOptions | None) -> _Answer:
        """`worker.open_source`."""
        return await self._run(worker.open_source, (options, self._limits), {name: video})

    async def extract(self, name: str, video: _Bytes, index: _Bytes, plan: VideoPlan, side: int) -> _Answer:
        """`worker.extract_gops`."""
        return await self._run(worker.extract_gops, (plan, side, self._limits), {name: video, f"{name}/index": index})

    async def close(self) -> None:
        """End the worker."""
        await asyncio.to_thread(self._pool.close)

    async def _run(
        self, function: Callable[..., object], arguments: tuple[Any, ...], inputs: dict[str, _Bytes]
    ) -> _Answer:
        files = [await asyncio.to_thread(self._file, name, data) for name, data in inputs.items()]
        job = self._pool.run_soon(function, arguments, files, lambda memory: memory)
        try:
            memory = await asyncio.wrap_future(job)
        except CodecError as error:
            return _Answer(self._pool.stats().restarts, None, error.code, str(error), error.param)
        return _Answer(self._pool.stats().restarts, np.frombuffer(memory, np.uint8))

    def _file(self, name: str, data: _Bytes) -> SharedFd:
        """An input as a file that can be handed to the worker."""
        file = self._inputs.get(name)
        if file is None:
            file = SharedFd(anonymous_file())
            write(file.fd, data.data)
            seal(file.fd)
            self._inputs[name] = file
            while len(self._inputs) > _KEPT_INPUTS:
                self._inputs.popitem(last=False)
        return file


class _Task(Future[Any]):
    """A task on its way to an actor and back."""

    def __init__(
        self, start: Callable[[Any], Any], read: Callable[[memoryview], object], take_back: Callable[[_Task], None]
    ) -> None:
        super().__init__()
        self.start, self.read, self._take_back = start, read, take_back
        self.submitted_s = time.monotonic()
        self.actor: Any = None
        self.reference: Any = None
        self.tries = _TRIES

    def cancel(self) -> bool:
        if not super().cancel():
            return False
        self._take_back(self)
        return True


@dataclass(eq=False)
class _Seat:
    """One actor's place."""

    actor: Any = None
    warm: bool = False
    task: _Task | None = None
    restarts: int = 0  # of the worker of the actor that sits here now


@dataclass(frozen=True, slots=True)
class _Handle:
    """Where a pooled video's actors read it from."""

    name: str
    video: Any
    index: Any


class RayPool(CodecExecutor):
    """Actors of the Ray cluster that this process is connected to, behind a bounded queue.

    Args:
        workers: actors, each of which takes one CPU of the cluster; None is one per CPU.
        limits: what a video and a task may take.
        max_queue: as in `CodecPool`.
        sandboxed: as in `CodecPool`.

    Raises:
        RuntimeError: `ray.init()` has not been called.
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        limits: Limits = DEFAULT_LIMITS,
        max_queue: int = 256,
        sandboxed: Sandboxed = True,
    ) -> None:
        if not ray.is_initialized():
            raise RuntimeError("connect to a Ray cluster first: ray.init()")
        self.size = int(ray.cluster_resources().get("CPU", 1)) if workers is None else workers
        if self.size < 1 or max_queue < 1:
            raise ValueError("a pool needs at least one worker and one place to wait")
        self.limits, self.max_queue = limits, max_queue
        self._sandboxed = sandboxed
        self._lock = threading.RLock()
        self._queue: deque[_Task] = deque()
        self._outcomes: Counter[str] = Counter()
        self._closed = False
        self._videos = 0
        self._lost = 0  # actors replaced, and the restarts that they had counted
        # Ray calls back in a thread of its own, which must not call Ray.
        self._events = ThreadPoolExecutor(1, "cope-codec-ray")
        self._seats = [_Seat() for _ in range(self.size)]
        for seat in self._seats:
            self._fill(seat)

    def open_soon(self, source: str | Path | bytes, options: VideoOptions | None = None) -> Future[PooledVideo]:
        """See `CodecExecutor.open_soon`."""
        with self._lock:
            if len(self._queue) >= self.max_queue:
                raise CodecError("queue_full", f"{len(self._queue)} video tasks are waiting already; try again later")
            self._videos += 1
            name = f"video {self._videos}"
        if isinstance(source, bytes):
            size = len(source)
        else:
            with Path(source).open("rb") as file:
                size = file.seek(0, 2)
        if size > self.limits.max_bytes:
            raise CodecError("video_too_large", f"the video has {size} bytes")
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        video = ray.put(np.frombuffer(data, np.uint8))

        def opened(found: Opened) -> PooledVideo:
            index = ray.put(np.frombuffer(packed(found.index, PacketIndex), np.uint8))
            return PooledVideo(source, found.index, found.plan, self, _Handle(name, video, index))

        read = partial(read_opened, options=options)
        return Following(self._submit(lambda actor: actor.open.remote(name, video, options), read), opened)

    def submit(self, video: PooledVideo, side: int, gops: Sequence[GopPlan]) -> Future[list[GopPrimitives]]:
        """See `CodecExecutor.submit`."""
        plan, handle = replace(video.plan, gops=tuple(gops)), video.handle
        read = partial(read_gops, index=video.index, plan=video.plan, side=side, gops=gops)
        return self._submit(
            lambda actor: actor.extract.remote(handle.name, handle.video, handle.index, plan, side), read
        )

    def stats(self) -> PoolStats:
        """The actors now."""
        with self._lock:
            oldest = time.monotonic() - self._queue[0].submitted_s if self._queue else 0.0
            warm = sum(seat.warm for seat in self._seats)
            busy = sum(seat.task is not None for seat in self._seats)
            restarts = self._lost + sum(seat.restarts for seat in self._seats)
            return PoolStats(warm, busy, len(self._queue), oldest, restarts, dict(self._outcomes))

    def close(self) -> None:
        """Take back all tasks and end all actors; Ray itself stays connected."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            tasks = [*self._queue, *(seat.task for seat in self._seats if seat.task is not None)]
            self._queue.clear()
            for seat in self._seats:
                seat.task = None
        if ray.is_initialized():
            actors = [seat.actor for seat in self._seats]
            ray.wait([actor.close.remote() for actor in actors], num_returns=len(actors), timeout=_CLOSE_S)
            for actor in actors:
                ray.kill(actor)
        for task in tasks:
            self._settle(task, None, CodecError("cancelled", "the codec pool was closed"))
        self._events.shutdown()

    # Tasks.

    def _submit(self, start: Callable[[Any], Any], read: Callable[[memoryview], object]) -> _Task:
        task = _Task(start, read, self._take_back)
        with self._lock:
            if self._closed:
                raise CodecError("cancelled", "the codec pool is closed")
            self._queue.append(task)
        self._pump()
        return task

    def _pump(self) -> None:
        """Give waiting tasks to free actors."""
        with self._lock:
            for seat in self._seats:
                if seat.warm and seat.task is None and self._queue and not self._closed:
                    task = seat.task = self._queue.popleft()
                    task.actor, task.reference = seat.actor, task.start(seat.actor)
                    task.tries -= 1
                    self._follow(task.reference, partial(self._finished, seat, task))

    def _follow(self, reference: Any, event: Callable[[Future[Any]], None]) -> None:
        def later(done: Future[Any]) -> None:
            with self._lock:
                if not self._closed:
                    self._events.submit(event, done)

        reference.future().add_done_callback(later)

    def _finished(self, seat: _Seat, task: _Task, done: Future[Any]) -> None:
        """Ray is done with a task, one way or the other."""
        error = done.exception()
        repeat = False
        with self._lock:
            if seat.task is not task:
                return
            seat.task = task.reference = None
            if isinstance(error, RayActorError):
                if seat.actor is task.actor:
                    self._replace(seat)
                repeat = task.tries > 0 and not task.cancelled()
            elif error is None and seat.actor is task.actor:
                seat.restarts = done.result().restarts
            if repeat:
                self._queue.appendleft(task)
        self._pump()
        if not repeat:
            self._settle(task, None if error else done.result(), _translated(error))

    def _take_back(self, task: _Task) -> None:
        """A future was cancelled."""
        with self._lock:
            waiting = task in self._queue
            if waiting:
                self._queue.remove(task)
            elif task.reference is not None and not self._closed:
                ray.cancel(task.reference)  # the actor's coroutine is cancelled, and its own pool frees the worker
        if waiting:
            self._settle(task, None, None)

    def _settle(self, task: _Task, answer: _Answer | None, error: BaseException | None) -> None:
        """Set the future."""
        value = None
        if answer is not None and answer.code is not None:
            error = CodecError(answer.code, answer.message, param=answer.param)
        elif answer is not None and answer.memory is not None and not task.cancelled():
            try:
                value = task.read(answer.memory.data)
            except Exception as problem:  # noqa: BLE001 - whatever it is, it is no answer, and the caller waits
                error = CodecError("worker_died", f"the worker's answer cannot be used: {problem}")
        if task.set_running_or_notify_cancel():
            if error is None:
                task.set_result(value)
            else:
                task.set_exception(error)
        with self._lock:
            self._outcomes[outcome_of(task)] += 1

    # Actors.

    def _fill(self, seat: _Seat) -> None:
        """Start an actor; it is given tasks once its worker is warm."""
        make = ray.remote(num_cpus=1, max_restarts=0, max_concurrency=8)(_Actor)
        seat.actor, seat.warm, seat.restarts = make.remote(self.limits, self._sandboxed), False, 0
        self._follow(seat.actor.ready.remote(), partial(self._started, seat, seat.actor))

    def _started(self, seat: _Seat, actor: Any, done: Future[Any]) -> None:
        with self._lock:
            if seat.actor is not actor:
                return
            if done.exception() is None:
                seat.warm = True
                self._follow(actor.end.remote(), partial(self._ended, seat, actor))
            else:  # its machine has failed, or it ended while it started
                again = threading.Timer(_RETRY_S, self._retry, [seat])
                again.daemon = True
                again.start()
        self._pump()

    def _ended(self, seat: _Seat, actor: Any, _: Future[Any]) -> None:
        with self._lock:
            if seat.actor is actor and not self._closed:
                self._replace(seat)

    def _retry(self, seat: _Seat) -> None:
        with self._lock:
            if not self._closed:
                self._replace(seat)

    def _replace(self, seat: _Seat) -> None:
        self._lost += 1 + seat.restarts
        self._fill(seat)


def _translated(error: BaseException | None) -> BaseException | None:
    """Ray's failures in our codes."""
    if isinstance(error, TaskCancelledError):
        return CodecError("cancelled", "the task was taken back")
    if isinstance(error, RayActorError):
        return CodecError("worker_died", "the machine or the process of a codec worker failed")
    if isinstance(error, ray.exceptions.RayTaskError):
        return unexpected(str(error))  # Ray's words hold a traceback
    if isinstance(error, RayError):
        return CodecError("worker_died", f"Ray lost the task: {type(error).__name__}")
    return error
