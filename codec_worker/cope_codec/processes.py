"""Starts worker processes with nothing of the server's in their hands but what they need.

multiprocessing's `spawn` gives a child the whole environment, with the server's secrets in it, its output, and a pipe
to the resource tracker, which deletes what it is told to.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
from multiprocessing import context, popen_spawn_posix, process, reduction, spawn, util

# What Python, its libraries and numba's cache are set up with. Tokens and keys are in none of these.
_KEPT = re.compile(
    r"PATH|HOME|TMPDIR|TZ|LANG|LANGUAGE|LC_\w+|LD_LIBRARY_PATH|XDG_CACHE_HOME|VIRTUAL_ENV|MALLOC_\w+"
    r"|PYTHON\w*|NUMBA_\w+|OMP_\w+|OPENBLAS_\w+|MKL_\w+"
)


def environment() -> dict[str, str]:
    """The part of this process's environment that workers get."""
    return {name: value for name, value in os.environ.items() if _KEPT.fullmatch(name)}


class CleanProcess(context.SpawnProcess):
    """A spawned process with a small environment, no output but the errors, and no resource tracker."""

    @staticmethod
    def _Popen(process_obj: process.BaseProcess) -> _Popen:
        return _Popen(process_obj)


class _Popen(popen_spawn_posix.Popen):
    """As its base, which cannot be told an environment, but with `subprocess` to start and await the child."""

    _fds: list[int]
    _child: subprocess.Popen[bytes]

    def _launch(self, process_obj: process.BaseProcess) -> None:
        preparation = spawn.get_preparation_data(process_obj.name)
        request = io.BytesIO()
        context.set_spawning_popen(self)
        try:
            reduction.dump(preparation, request)
            reduction.dump(process_obj, request)
        finally:
            context.set_spawning_popen(None)
        child_reads, we_write = os.pipe()  # our end stays open: the child sees by it that we live
        self.sentinel, child_holds = os.pipe()
        tracker = os.open(os.devnull, os.O_WRONLY)
        try:
            self._child = subprocess.Popen(  # noqa: S603 - Python itself
                spawn.get_command_line(tracker_fd=tracker, pipe_handle=child_reads),
                executable=spawn.get_executable(),
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[*self._fds, tracker, child_reads, child_holds],
            )
        except BaseException:
            os.close(we_write)
            os.close(self.sentinel)
            raise
        finally:
            for fd in (tracker, child_reads, child_holds):
                os.close(fd)
        self.pid = self._child.pid
        self.finalizer = util.Finalize(self, _close, (self.sentinel, we_write))
        with open(we_write, "wb", closefd=False) as pipe:
            pipe.write(request.getbuffer())

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        """How the child ended, or None."""
        if not flag:
            return self.wait()
        if self.returncode is None:
            self.returncode = self._child.poll()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the child itself: it could close the sentinel that the base waits for, and live on."""
        if self.returncode is None:
            try:
                self.returncode = self._child.wait(timeout)
            except subprocess.TimeoutExpired:
                return None
        return self.returncode


def _close(*fds: int) -> None:
    for fd in fds:
        os.close(fd)
