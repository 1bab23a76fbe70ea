"""The child's side of the pool: warms up, limits itself, closes its sandbox, then does what it is handed."""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, get_type_hints

import av
import av.error

# PyAV would import it when it meets subtitles, where a worker's sandbox has closed the file system.
import av.subtitles.codeccontext
import numpy as np

from cope_codec import samples, sandbox, wire
from cope_codec.answers import Opened
from cope_codec.container import open_container
from cope_codec.errors import CodecError
from cope_codec.extract import extract
from cope_codec.handover import Receiver
from cope_codec.index import PacketIndex
from cope_codec.limits import Limits
from cope_codec.options import VideoOptions
from cope_codec.pipes import BUG, Answer
from cope_codec.plan import VideoPlan
from cope_codec.primitives import GopPrimitives
from cope_codec.sandbox import Sandboxed
from cope_codec.shared import SharedFile, load, mapped, write
from cope_codec.video import open as open_video

OUT_OF_MEMORY_EXIT = 77  # a worker that ran out of memory is bloated: it ends instead of answering
CANCEL_SIGNAL = signal.SIGUSR1
_AGAIN_S = (
    0.02  # PyAV swallows what is raised while FFmpeg reads the file, so it is raised again until the task is over
)
# A task: what to call with the descriptors after the first two, and with these arguments. What it returns is written to
# the second in the form of `wire`, as its annotation says.
Request = tuple[Callable[..., object], tuple[Any, ...]]
_MOST_MESSAGE = 500
_STDERR = 2

_log = logging.getLogger(__name__)


class _Cancelled(BaseException):
    """Raised by the cancel signal wherever the task is."""


class _State:
    receiver: Receiver | None = None
    busy = False


def initialize(address: str, limits: Limits, sandboxed: Sandboxed) -> None:
    """Make a worker of this process: everything is imported and compiled before the first task comes.

    Args:
        address: of the parent's `Handover`.
        limits: what a task may take.
        sandboxed: as in `CodecPool`.

    Raises:
        RuntimeError: the sandbox is required and cannot be closed.
    """
    # pebble's own handler would wait for FFmpeg to come back from a long call; a worker has nothing to tidy up.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(CANCEL_SIGNAL, _on_cancel)
    signal.signal(signal.SIGALRM, _on_cancel)
    sys.excepthook = sys.unraisablehook = _say_nothing_of_cancelling
    av.logging.set_level(av.logging.PANIC)  # strangers' files would fill the log
    _warm_up()
    _State.receiver = Receiver(address)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits.result_bytes, limits.result_bytes))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    roof = address_space() + limits.memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (roof, roof))
    if sandboxed:
        _close(required=sandboxed == "require")
    _State.receiver.end_with_parent()
    _State.receiver.ready()


def _close(required: bool) -> None:
    """Close the sandbox; standard error, which is the server's log, is closed with it."""
    alone = _end_other_threads()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    closed = sandbox.close_files() & sandbox.close_calls()
    if required and not (alone and closed):
        raise RuntimeError("the sandbox of a codec worker cannot be closed")
    if not closed:
        _log.warning("this kernel lacks %s: codec workers are not fully closed", " and ".join(sandbox.missing()))
    os.dup2(nowhere, _STDERR)
    os.close(nowhere)


def _end_other_threads() -> bool:
    """A sandbox holds the thread that closes it and those it starts later: there must be no other.

    numpy's OpenBLAS starts its threads when it is loaded. It ends them before a fork, to start them again when they are
    needed, which they are not. True if this thread is alone.
    """
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    others = len(os.listdir("/proc/self/task")) - 1
    if others:
        _log.warning("%d threads of a codec worker are outside its sandbox", others)
    return not others


def address_space() -> int:
    """Address space of this process, bytes."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _warm_up() -> None:
    """Run every path once, so that kernels are loaded (files are out of reach later) and libraries bound."""
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 255, (64, 64, 3), dtype=np.uint8) for _ in range(4)]
    data = samples.encode(pictures, codec="mpeg4", fps=2, b_frames=0, quantiser=5)
    for options in ({"mode": "native"}, {"mode": "transcode"}, {"frames": 2}):
        list(open_video(data, VideoOptions.from_mapping(options)).gops(16))


def _on_cancel(number: int, frame: FrameType | None) -> None:
    if _State.busy:
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
        raise _Cancelled


def _say_nothing_of_cancelling(*arguments: Any) -> None:
    """A hook for exceptions that nobody can catch: PyAV shows those that are raised while FFmpeg reads the file."""
    if arguments[0] is _Cancelled or getattr(arguments[0], "exc_type", None) is _Cancelled:
        return
    hook = sys.__excepthook__ if len(arguments) > 1 else sys.__unraisablehook__
    hook(*arguments)


def run(token: bytes) -> Answer:
    """Do the task with this token; its result goes to the file that came with it.

    Returns:
        A `CodecError`'s code, message and param, or an empty code when all is well.
    """
    assert _State.receiver is not None
    try:
        fds = _State.receiver.take(token)
    except OSError:
        os._exit(1)  # no task can reach this process any more
    if not fds:
        return "cancelled", "the task was taken back", None
    answer: Answer
    try:
        _State.busy = True
        answer = _call(fds)
        _State.busy = False
    except _Cancelled:
        _State.busy = False
        answer = "cancelled", "the task was taken back", None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for fd in fds:
            os.close(fd)
    return answer


def _call(fds: list[int]) -> Answer:
    request_fd, result_fd, *inputs = fds
    try:
        request: Request = load(request_fd)
        function, arguments = request
        for at, piece in wire.pack(function(inputs, *arguments), get_type_hints(function)["return"]):
            write(result_fd, piece, at)
    except CodecError as error:
        return error.code, str(error)[:_MOST_MESSAGE], error.param
    except MemoryError:
        os._exit(OUT_OF_MEMORY_EXIT)
    except OSError as error:
        if "File too large" in str(error):
            return "video_too_large", "the video's primitives are larger than a result may be", None
        return BUG, f"{type(error).__name__}: {error}"[:_MOST_MESSAGE], None
    except Exception as error:  # noqa: BLE001 - the parent raises it: it is a bug of ours, not the video's
        return BUG, f"{type(error).__name__}: {error}"[:_MOST_MESSAGE], None
    return "", "", None


def open_source(inputs: list[int], options: VideoOptions | None, limits: Limits) -> Opened:
    """Task: index and plan a video. Inputs: the video."""
    video = open_video(SharedFile(inputs[0]), options, limits=limits)
    return Opened(video.index, video.plan)


def extract_gops(inputs: list[int], plan: VideoPlan, side: int, limits: Limits) -> list[GopPrimitives]:
    """Task: decode all GOPs of a (cut) plan. Inputs: the video, its index."""
    source = SharedFile(inputs[0])
    index: PacketIndex = wire.unpack(mapped(inputs[1]), PacketIndex)
    container = open_container(source, limits)
    return list(extract(source, container, index, plan, side, plan.gops))


def call(inputs: list[int], function: Callable[..., object], *arguments: Any) -> int | None:
    """Task: call any function; the tests' way to make a worker hang, bloat, die or lie. Returns whole numbers only."""
    result = function(*arguments)
    return result if isinstance(result, int) else None
