"""Work that is split over processes, with a progress bar."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Job = TypeVar("Job")
Result = TypeVar("Result")
stderr = Console(stderr=True)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def bar(unit: str) -> Progress:
    """A progress bar that counts `unit`s."""
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
    )


def run(
    function: Callable[[Job], Result], jobs: Sequence[Job], workers: int, description: str, *, unit: str, per_job: int
) -> Iterator[Result]:
    """Run a function over jobs in processes of their own; yields results as they come, in any order.

    Args:
        function: importable, called with one job.
        jobs: what to do.
        workers: processes.
        description: shown before the bar.
        unit, per_job: what the bar counts, and how many of them a job holds.
    """
    if not jobs:
        return
    with bar(unit) as progress:
        task = progress.add_task(description, total=len(jobs) * per_job, note="")
        # Spawned: a fork would inherit locks of libraries that have threads.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
            waiting = [pool.submit(function, job) for job in jobs]
            try:
                for done in as_completed(waiting):
                    progress.advance(task, per_job)
                    yield done.result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
