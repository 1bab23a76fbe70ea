"""Work that is split over processes, with a progress bar."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Job = TypeVar("Job")
Result = TypeVar("Result")
stderr = Console(stderr=True)
_START = "spawn"  # a fork would inherit locks of libraries that have threads


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def bar(unit: str, *, shown: bool = True) -> Progress:
    """A progress bar that counts `unit`s; of several processes with one terminal, one shows it."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=stderr,
        refresh_per_second=2,
        disable=not shown,
    )


def run(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    workers: int,
    description: str,
    *,
    unit: str,
    per_job: int,
    crashed: Callable[[Job], Job] | None = None,
) -> Iterator[Result]:
    """Run a function over jobs in processes of their own; yields results as they come, in any order.

    Args:
        function: importable, called with one job.
        jobs: what to do.
        workers: processes.
        description: shown before the bar.
        unit, per_job: what the bar counts, and how many of them a job holds.
        crashed: gets a job whose process has ended in the midst of it, and returns the job to do in its place.

    Raises:
        BrokenProcessPool: a process has ended in the midst of a job, and `crashed` is not given.
    """
    if not jobs:
        return
    waiting = deque(jobs)
    # A pool for each process: when one ends, it is known which job it had, and the others go on.
    pools = [_one_process() for _ in range(min(workers, len(jobs)))]
    running: dict[Future[Result], tuple[int, Job]] = {}
    try:
        with bar(unit) as progress:
            task = progress.add_task(description, total=len(jobs) * per_job, note="")
            idle = list(range(len(pools)))
            while waiting or running:
                while waiting and idle:
                    number, job = idle.pop(), waiting.popleft()
                    running[pools[number].submit(function, job)] = number, job
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    number, job = running.pop(done)
                    idle.append(number)
                    try:
                        result = done.result()
                    except BrokenProcessPool:
                        if crashed is None:
                            raise
                        waiting.appendleft(crashed(job))
                        pools[number].shutdown()
                        pools[number] = _one_process()
                        continue
                    progress.advance(task, per_job)
                    yield result
    finally:
        for pool in pools:
            pool.shutdown()


def _one_process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(_START))
