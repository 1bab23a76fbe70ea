"""How fast the codec workers get through videos, and so when a client that was refused had better come again."""

from __future__ import annotations

import math
from collections import deque

from cope_server.stages import Interval, length

LEAST_S, MOST_S = 1, 60
_WINDOW_S = 60.0
_MOST_KEPT = 512


class Pace:
    """Seconds of video decoded per second, of late; of the time in which none was decoded nothing is known."""

    def __init__(self) -> None:
        self._done: deque[tuple[Interval, float]] = deque(maxlen=_MOST_KEPT)

    def note(self, begin: float, end: float, video_s: float) -> None:
        """A video was decoded.

        Args:
            begin, end: when, seconds of `time.perf_counter`; the wait for a turn is before.
            video_s: its length, seconds.
        """
        self._done.append(((begin, end), video_s))

    def speed(self, now: float) -> float | None:
        """Seconds of video per second of the last minute's work; None if there was none.

        Args:
            now: seconds of `time.perf_counter`.
        """
        while self._done and self._done[0][0][1] < now - _WINDOW_S:
            self._done.popleft()
        busy_s = length(interval for interval, _ in self._done)
        return sum(seconds for _, seconds in self._done) / busy_s if busy_s > 0 else None

    def retry_after_s(self, waiting_s: float, now: float) -> int:
        """When what waits now will have been decoded, whole seconds from 1 to 60; 1 where nothing is known.

        Args:
            waiting_s: length of the videos that wait or are being decoded, seconds.
            now: seconds of `time.perf_counter`.
        """
        speed = self.speed(now)
        return LEAST_S if not speed else min(max(math.ceil(waiting_s / speed), LEAST_S), MOST_S)
