"""One worker's place in the pool: its pebble pool, the task it is at, and what became of that task."""

from __future__ import annotations

import contextlib
import os
import signal
from concurrent.futures import Future
from dataclasses import dataclass, fields
from typing import Any, cast, get_args

import pebble

from cope_codec import shared, worker
from cope_codec.errors import CodecError, CodecErrorCode, unexpected
from cope_codec.executor import START_S
from cope_codec.jobs import Job
from cope_codec.limits import Limits
from cope_codec.options import VideoOptions
from cope_codec.pipes import Answer, GuardedContext
from cope_codec.sandbox import Sandboxed

_CANCEL_GRACE_S = 0.1  # a worker that has not let go of a cancelled task by then is killed
_STUCK_S = 5.0  # beyond the wall time: pebble itself did not notice
_OPTIONS = frozenset(field.name for field in fields(VideoOptions))


class Slot:
    """A `pebble.ProcessPool` of one process, which pebble starts, times and replaces.

    With several workers in one pebble pool, they would share a pipe and its lock, and pebble 5.2 gives up the whole
    pool when an idle worker dies and waits a minute when one dies with the lock in its hands.

    Args:
        address: of the parent's `Handover`.
        limits: what a task may take.
        sandboxed: as in `CodecPool`.
    """

    def __init__(self, address: str, limits: Limits, sandboxed: Sandboxed) -> None:
        self._address, self._limits, self._sandboxed = address, limits, sandboxed
        self.job: Job | None = None
        self.condemned = False  # gets no task until it has been ended and built again
        self.rests_until_s = 0.0  # after a failure of mending
        self._pebble: Any = None
        self.build()

    @property
    def free(self) -> bool:
        """A task can be given to it."""
        return self.job is None and not self.condemned

    @property
    def broken(self) -> bool:
        """Pebble has given the worker up and will not replace it."""
        return not self._pebble.active

    def build(self) -> None:
        """Start a worker.

        Raises:
            OSError, BrokenExecutor, RuntimeError: no descriptors or threads are left; nothing of the attempt stays.
        """
        made: Any = pebble.ProcessPool(
            max_workers=1,
            initializer=worker.initialize,
            initargs=(self._address, self._limits, self._sandboxed),
            context=GuardedContext(),
        )
        try:
            _ = made.active  # starts the process now, not with the first task
        except BaseException:
            with contextlib.suppress(Exception):  # whatever of it had not begun
                made.stop()
                made.join()
            raise
        self._pebble = made
        self.condemned = False

    def end(self) -> None:
        """End the worker, whatever it is doing."""
        self._pebble.stop()
        self._pebble.join()

    def schedule(self, job: Job) -> Future[Answer]:
        """Send the worker a task's token.

        Raises:
            RuntimeError: it is broken.
        """
        running: Future[Answer] = self._pebble.schedule(worker.run, args=(job.token,), timeout=self._limits.wall_s)
        return running

    def is_stuck(self, job: Job, now_s: float) -> bool:
        """Kill the worker of a cancelled task; True for a task that even pebble has lost."""
        if job.cancelled_s is not None and job.pid is not None and now_s - job.cancelled_s > _CANCEL_GRACE_S:
            send_signal(job.pid, signal.SIGKILL)
        if job.fetched_s is None:
            return now_s - job.started_s > START_S
        return now_s - job.fetched_s > self._limits.wall_s + _STUCK_S


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a task.

    Attributes:
        value: its result.
        error: or why there is none.
        suspect: the worker's answer was none, or a failure that no video should cause: it is given no other task.
    """

    value: object = None
    error: BaseException | None = None
    suspect: bool = False


def outcome(job: Job, done: Future[Answer], limits: Limits) -> Outcome:
    """Read and check what a worker answered, or why it did not."""
    if done.cancelled():
        return Outcome(error=CodecError("cancelled", "the task was taken back"))
    error = done.exception()
    if error is not None:
        return Outcome(error=_reason(error, limits))
    code, message, param = done.result()
    if code in get_args(CodecErrorCode):
        # A name from a worker ends up in the answer to a client.
        known = param in _OPTIONS
        return Outcome(error=CodecError(cast(CodecErrorCode, code), message, param=param if known else None))
    if code:
        return Outcome(error=unexpected(message), suspect=True)
    if job.cancelled():
        return Outcome()
    try:
        with shared.counting_descriptors():  # a mapping takes one
            shared.seal(job.result_fd)
            return Outcome(job.read(shared.mapped(job.result_fd)))
    except CodecError as short:
        return Outcome(error=short)
    except Exception as problem:  # noqa: BLE001 - whatever it did, it was no answer, and the caller waits
        return Outcome(error=CodecError("worker_died", f"the worker's answer cannot be used: {problem}"), suspect=True)


def _reason(error: BaseException, limits: Limits) -> CodecError:
    if isinstance(error, pebble.ProcessExpired):
        if error.exitcode == worker.OUT_OF_MEMORY_EXIT:
            return CodecError("out_of_memory", f"the video needs more than {limits.memory_bytes >> 20} MiB to decode")
        return CodecError("worker_died", f"the worker process ended with code {error.exitcode}")
    if isinstance(error, TimeoutError):
        return CodecError("timeout", f"the video was not decoded within {limits.wall_s:g} s")
    return CodecError("worker_died", f"the worker process ended: {type(error).__name__}")


def send_signal(pid: int, number: signal.Signals) -> None:
    """Signal a process that may be gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # or somebody else's by now
        os.kill(pid, number)
