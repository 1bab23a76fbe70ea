"""Tasks on their way through a pool, as futures whose cancelling reaches the worker."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class Job(Future[Any]):
    """A task on its way; cancelling it takes it out of the queue or away from its worker.

    Args:
        token: what the worker asks for the task's files with.
        result_fd: the anonymous file that the worker writes to.
        read: makes the future's result of what the worker has written; raises `MalformedError` for what is no answer.
        take_back: called once when the future is cancelled.
    """

    def __init__(
        self, token: bytes, result_fd: int, read: Callable[[memoryview], object], take_back: Callable[[Job], None]
    ) -> None:
        super().__init__()
        self.token, self.result_fd, self.read = token, result_fd, read
        self._take_back = take_back
        self.submitted_s = self.started_s = time.monotonic()
        self.cancelled_s: float | None = None
        self.fetched_s: float | None = None
        self.pid: int | None = None
        self.again = True  # may be given to another worker, once, if it never reached this one

    def cancel(self) -> bool:
        """Take the task back; False when it is done already."""
        if not super().cancel():
            return False
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
        self._leader, self._make = leader, make
        leader.add_done_callback(self._follow)

    def cancel(self) -> bool:
        """Take the task back; False when it is done already."""
        if not super().cancel():
            return False
        self._leader.cancel()
        return True

    def _follow(self, leader: Future[Any]) -> None:
        if leader.cancelled():
            super().cancel()
            self.set_running_or_notify_cancel()
            return
        error = leader.exception()
        value = None
        if error is None:
            try:
                value = self._make(leader.result())
            except Exception as problem:  # noqa: BLE001 - nobody else would hear of it, and the caller waits
                error = problem
        if self.set_running_or_notify_cancel():
            if error is None:
                self.set_result(value)
            else:
                self.set_exception(error)
