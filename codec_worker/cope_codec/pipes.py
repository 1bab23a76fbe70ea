"""The pipes between pebble and its worker: tasks go out as pebble pickles them, answers come back as checked JSON.

Pebble would unpickle whatever the worker writes, and a pickle names code to run. It takes pipes and locks from the
multiprocessing context that it is given, so that is where ours come in.
"""

from __future__ import annotations

import array
import fcntl
import json
import os
import struct
import termios
from multiprocessing import reduction
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from typing import Any

from pebble.common.types import Result, ResultStatus
from pebble.pool.process import Acknowledgement, TaskResult

from cope_codec.processes import CleanProcess

# What a worker says of a task, small enough that a write is never torn: (code or "", message, param).
Answer = tuple[str, str, str | None]
BUG = "bug"  # the code for what is no fault of the video's
_MOST_BYTES = 8192
_SIZE = struct.Struct("!i")  # what multiprocessing puts before a message


class GuardedContext(SpawnContext):
    """Spawns clean processes whose answers are not unpickled. For pebble pools of one process."""

    Process = CleanProcess

    def RLock(self) -> Any:
        """No lock at all: pebble's keep several workers of one pool from reading each other's tasks.

        A real one is a named semaphore, which stays in /dev/shm where a whole process tree is killed.
        """
        return _NoLock()

    def Pipe(self, duplex: bool = True) -> tuple[Any, Any]:
        """A pipe of which one end goes to the child: as `reduce` turns it into what belongs there."""
        reader, writer = super().Pipe(duplex)
        return _moved(reader, _AnswerReader), _moved(writer, _TaskWriter)


class _NoLock:
    """A lock that is always to be had."""

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        return True

    def release(self) -> None:
        pass


class _AnswerReader(Connection):
    """The parent's end, for answers. A child that gets it reads tasks with it."""

    def recv(self) -> Acknowledgement | TaskResult:
        """The next message.

        Raises:
            OSError: it is none that a worker of ours sends; pebble then gives the worker up.
        """
        there = array.array("i", [0])
        fcntl.ioctl(self.fileno(), termios.FIONREAD, there)
        if not there[0]:
            raise EOFError
        # A worker writes a message at once. Waiting for the rest of half a one would let it have the next worker's.
        (size,) = _SIZE.unpack(os.read(self.fileno(), _SIZE.size).ljust(_SIZE.size, b"\xff"))
        if not 0 <= size <= min(_MOST_BYTES, there[0] - _SIZE.size):
            raise OSError("a codec worker sent half a message, or too long a one")
        data = os.read(self.fileno(), size)
        try:
            return _message(json.loads(data))
        except (ValueError, TypeError, RecursionError):
            raise OSError("a codec worker sent what is no answer") from None


class _TaskWriter(Connection):
    """The parent's end, for tasks. A child that gets it writes answers with it."""


class _AnswerWriter(Connection):
    """The child's end, for answers."""

    def send(self, obj: Any) -> None:
        """Send one of pebble's messages."""
        if isinstance(obj, Acknowledgement):
            fields: tuple[Any, ...] = (obj.worker, obj.task)
        else:
            well = obj.result.status == ResultStatus.SUCCESS
            fields = (obj.task, *(obj.result.value if well else (BUG, "the worker failed", None)))
        self.send_bytes(json.dumps(fields).encode())


def _message(fields: Any) -> Acknowledgement | TaskResult:
    if not isinstance(fields, list):
        raise TypeError
    if len(fields) == 2 and all(type(field) is int for field in fields):
        return Acknowledgement(*fields)
    task, code, message, param = fields
    if type(task) is not int or not isinstance(code, str) or not isinstance(message, str):
        raise TypeError
    if param is not None and not isinstance(param, str):
        raise TypeError
    return TaskResult(task, Result(ResultStatus.SUCCESS, (code, message, param)))


def _moved(end: Any, kind: type[Connection]) -> Connection:
    moved = kind(os.dup(end.fileno()), end.readable, end.writable)
    end.close()
    return moved


def _rebuild(kind: type[Connection], duplicate: Any, readable: bool, writable: bool) -> Connection:
    return kind(duplicate.detach(), readable, writable)


def _reduce_reader(end: Connection) -> tuple[Any, ...]:
    return _rebuild, (Connection, reduction.DupFd(end.fileno()), end.readable, end.writable)


def _reduce_writer(end: Connection) -> tuple[Any, ...]:
    return _rebuild, (_AnswerWriter, reduction.DupFd(end.fileno()), end.readable, end.writable)


reduction.register(_AnswerReader, _reduce_reader)
reduction.register(_TaskWriter, _reduce_writer)
