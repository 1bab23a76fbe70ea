"""Tasks on their way through a pool, as futures whose cancelling reaches the worker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from cope_codec.shared import SharedFd


class Job(Future[Any]):
    """A task on its way; cancelling it takes it out of the queue or away from its worker.

    Args:
        request: what the worker is asked, as it is written for it.
        inputs: files that go with it, held until the task is over.
        read: makes the future's result of what the worker has written; raises `MalformedError` for what is no answer.
        take_back: called once when the future is cancelled.
        copied: memory that is held by `inputs` for this task alone, bytes.

    Attributes:
        token: what the worker asks for the task's files with; empty while the task waits.
        result_fd: the anonymous file that the worker writes to; -1 while the task waits.
    """

    def __init__(
        self,
        request: bytes,
        inputs: Sequence[SharedFd],
        read: Callable[[memoryview], object],
        take_back: Callable[[Job], None],
        copied: int = 0,
    ) -> None:
        super().__init__()
        self.request, self.inputs, self.read, self.copied = request, inputs, read, copied
        self.token, self.result_fd = b"", -1
        self._take_back = take_back
        self._first_cancel = threading.Lock()
        self.submitted_s = self.started_s = time.monotonic()
        self.cancelled_s: float | None = None
        self.fetched_s: float | None = None
        self.pid: int | None = None
        self.answered = False  # what became of it is known, and being read
        self._again = True  # may be given to another worker, once

    def repeat(self) -> bool:
        """Whether to give the task to another worker, since it never reached the one that it was given to."""
        if self.fetched_s is not None or not self._again or self.cancelled():
            return False
        self._again = self.answered = False
        return True

    def cancel(self) -> bool:
        """Take the task back; False when it is done already."""
        if not super().cancel():
            return False
        if self._first_cancel.acquire(blocking=False):  # never released
            self._take_back(self)
        return True


class Following(Future[Any]):
    """The future of what is made of another's result; cancelling it cancels the other.

    Args:
        leader: what to wait for.
        make: called with the leader's result.
    """

    def __init__(self, leader: Future[Any], make: Callable[[Any], object]) -> None:
        super().__init__()
        self._leader: Future[Any] | None = leader
        self._make = make
        leader.add_done_callback(self._follow)

    def cancel(self) -> bool:
        """Take the task back; False when it is done already."""
        if not super().cancel():
            return False
        leader = self._leader
        if leader is not None:
            leader.cancel()
        return True

    def _follow(self, leader: Future[Any]) -> None:
        make = self._make
        # The leader holds this future, too; and what `make` holds of the video need not live as long as the future.
        del self._make
        self._leader = None
        if leader.cancelled():
            super().cancel()
            self.set_running_or_notify_cancel()
            return
        error = leader.exception()
        value = None
        if error is None:
            try:
                value = make(leader.result())
            except Exception as problem:  # noqa: BLE001 - nobody else would hear of it, and the caller waits
                error = without_frames(problem)
        if self.set_running_or_notify_cancel():
            if error is None:
                self.set_result(value)
            else:
                self.set_exception(error)


def without_frames(error: BaseException) -> BaseException:
    """The error for a future, without the frames that it came through.

    They hold the future, and it holds the error: until the collector finds that circle, the descriptors in the frames
    would stay open.
    """
    error.__context__ = error.__cause__ = None
    return error.with_traceback(None)
