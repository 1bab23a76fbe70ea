"""Workers that a video has taken over: whatever they answer, nothing of it is run, and only their task fails."""

from __future__ import annotations

import contextlib
import errno
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pebble.pool.process
import psutil
import pytest
from clips import clip
from leftovers import descriptors

from cope_codec import CodecError, worker
from cope_codec.limits import Limits
from cope_codec.pool import CodecPool, PooledVideo
from cope_codec.slots import Slot

SIDE = 32


@pytest.fixture(scope="module")
def pool() -> Iterator[CodecPool]:
    with CodecPool(1, limits=Limits(wall_s=20)) as made:
        yield made


def take_over(pool: CodecPool, source: str, **names: Any) -> None:
    """Run code in the worker, as an exploit would; it stays as it is until it is replaced."""
    pool.wait_until_warm()
    pool.run_soon(worker.call, (exec, textwrap.dedent(source), names), []).result(timeout=30)


def failure(pool: CodecPool, video: PooledVideo | None = None) -> str:
    """The message of the `worker_died` that the next task must end in; afterwards the pool must be well."""
    pids = pool.pids()
    with pytest.raises(CodecError) as caught:
        if video is None:
            pool.open(clip(4))
        else:
            list(video.gops(SIDE))
    assert caught.value.code == "worker_died"
    deadline = time.monotonic() + 60
    while not pool.pids() or set(pool.pids()) & set(pids):
        assert time.monotonic() < deadline, "the worker was not replaced"
        time.sleep(0.02)
    (gop,) = pool.open(clip(4)).gops(SIDE)
    assert gop.missing == 0
    return str(caught.value)


def attempt(pool: CodecPool, source: str) -> int:
    """Run code in the worker; the number of the OSError that it ends in, 0 if it does what it wants."""
    names: dict[str, Any] = {"source": textwrap.dedent(source)}
    return int(pool.run_soon(worker.call, (eval, f"(exec({ATTEMPT!r}, globals()), number)[1]", names), []).result(30))


ATTEMPT = """
import ctypes, fcntl, mmap, os, resource, signal, socket, sys
import cope_codec.worker as w
from pathlib import Path
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)
number = 0
try:
    exec(source)
except OSError as error:
    number = error.errno
"""


def bomb(path: Path) -> bytes:
    """A pickle that makes a file where it is loaded."""
    return b"cposix\nmkdir\n(V" + str(path).encode() + b"\ntR."


WRITE = """
    import cope_codec.worker as w, os
    real = w.wire.pack
    w.wire = type(w.wire)("fake")
    def pack(value, kind):
        yield 0, data
    w.wire.pack = pack
"""

SLOWLY = """
    import cope_codec.worker as w, time
    def load(*given, real=w.load):
        time.sleep(0.2)
        return real(*given)
    w.load = load
"""


@pytest.mark.parametrize("name", ["pickle", "garbage", "nothing", "short header", "zeros"])
def test_a_result_that_is_none(pool: CodecPool, name: str, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    data = {
        "pickle": bomb(trap),
        "garbage": bytes(range(256)) * 100,
        "nothing": b"",
        "short header": b"COPEWIR1" + b"\xff\0\0\0\0\0\0\0" + b"[1,",
        "zeros": bytes(4096),
    }[name]
    take_over(pool, WRITE, data=data)
    assert "cannot be used" in failure(pool)
    assert not trap.exists()


# What follows answers in the right form, with something wrong in it.
CHANGE = """
    import cope_codec.worker as w, dataclasses, numpy as np
    real = w.wire
    w.wire = type(real)("fake")
    w.wire.unpack = real.unpack
    def pack(value, kind):
        return real.pack(change(value), kind)
    w.wire.pack = pack
    replace = dataclasses.replace
"""


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("gops[:-1]", "number"),
        ("[*gops, gops[-1]]", "number"),
        ("gops[::-1]", "key"),
        ("[replace(gop, key='0' * 40) for gop in gops]", "key"),
        ("[replace(gop, timestamps_s=gop.timestamps_s + 1) for gop in gops]", "timestamps"),
        ("[replace(gop, codec='vp9') for gop in gops]", "kind"),
        ("[replace(gop, mode='dense') for gop in gops]", "kind"),
        ("[replace(gop, rotation=45) for gop in gops]", "notes"),
        ("[replace(gop, missing=-1) for gop in gops]", "notes"),
        ("[replace(gop, source_width=-1) for gop in gops]", "sizes"),
    ],
)
def test_gops_that_were_not_asked_for(pool: CodecPool, change: str, what: str) -> None:
    pool.wait_until_warm()
    video = pool.open(clip(12))
    take_over(pool, f"{CHANGE}\n    def change(gops): return {change}\n")
    assert what in failure(pool, video)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("replace(opened.plan, options=replace(opened.plan.options, fps=2.0))", "options"),
        ("replace(opened.plan, gops=())", "plan"),
        ("replace(opened.plan, gops=opened.plan.gops * 2, total_gops=2)", "order"),
        ("replace(opened.plan, gops=(replace(opened.plan.gops[0], last_packet=10**6),))", "ends"),
        ("replace(opened.plan, gops=(replace(opened.plan.gops[0], key='../' + 'a' * 37),))", "key"),
    ],
)
def test_a_plan_that_cannot_be(pool: CodecPool, change: str, what: str) -> None:
    take_over(pool, f"{CHANGE}\n    def change(opened): return replace(opened, plan={change})\n")
    assert what in failure(pool)


# The worker's own end of pebble's pipe, and the file that its answer goes to.
FIND = """
    import sys, os, mmap, fcntl
    def find(function, name):
        frame = sys._getframe()
        while frame.f_code.co_name != function:
            frame = frame.f_back
        return frame.f_locals[name]
"""


@pytest.mark.parametrize("name", ["pickle", "garbage", "too long", "json", "half", "a size"])
def test_lies_in_the_pipe(pool: CodecPool, name: str, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    data = {
        "pickle": bomb(trap),
        "garbage": b"\xff" * 100,
        "too long": b"[" * 100_000,
        "json": b'[{"task": 1}, "", "", []]',
        "half": b"\0\0\0\x64half of it",
        "a size": b"\0\0",
    }[name]
    send = "os.write({0}.fileno(), data)" if name in ("half", "a size") else "{0}.send_bytes(data)"
    pool.wait_until_warm()
    send = send.format("find('process_tasks', 'channel').writer")
    source = f"{FIND}\n    {send}\n    import time; time.sleep(10)"
    with pytest.raises(CodecError) as caught:
        pool.run_soon(worker.call, (exec, textwrap.dedent(source), {"data": data}), []).result(timeout=30)
    assert caught.value.code == "worker_died"
    assert not trap.exists()
    pool.wait_until_warm()
    assert len(list(pool.open(clip(4)).gops(SIDE))) == 1


def test_a_result_that_the_worker_could_still_change_is_refused(pool: CodecPool) -> None:
    """It keeps a writable mapping, through which it could alter, or by cutting it short take away, what was checked."""
    source = f"""
    {FIND}
    import cope_codec.worker as w
    kept = []
    def write(fd, piece, at, real=w.write):
        real(fd, piece, at)
        if len(piece) > 100:  # not yet the answer to this very task
            kept.append(mmap.mmap(fd, 0))
    w.write = write
    """
    take_over(pool, source)
    assert "cannot be used" in failure(pool)


def test_results_cannot_be_changed_once_they_are_read(pool: CodecPool) -> None:
    """The worker keeps the descriptor, and tries when the answer has been read."""
    take_over(
        pool,
        """
        import os, cope_codec.worker as w
        def write(fd, piece, at, real=w.write, dup=os.dup):
            real(fd, piece, at)
            if len(piece) > 1000:  # an array, and not the answer to one of the attempts
                w.kept = dup(fd)
        w.write = write
        """,
    )
    (gop,) = pool.open(clip(4)).gops(SIDE)
    before = gop.residual.tobytes()
    for source in ("os.ftruncate(w.kept, 0)", "os.pwrite(w.kept, b'x' * 4096, 0)", "mmap.mmap(w.kept, 4096)"):
        assert attempt(pool, source) == errno.EPERM
    assert gop.residual.tobytes() == before


@pytest.mark.parametrize(
    "source",
    [
        "os.open('/etc/hostname', os.O_RDONLY)",
        "os.open('/dev/shm/cope-test', os.O_CREAT | os.O_WRONLY)",
        "os.listdir('/')",
        "os.stat('/etc/passwd')",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
        "socket.socketpair()",
        "os.execv('/bin/true', ['true'])",
        "os.fork()",
        "call('vfork')",
        "os.kill(os.getppid(), 0)",
        "os.kill(0, 0)",
        "call('tgkill', os.getppid(), os.getppid(), 0)",
        "fcntl.fcntl(w._State.receiver._connection, fcntl.F_SETOWN, os.getppid())",
        "resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE)",
        "resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (64, 64))",
        "os.sched_setaffinity(os.getppid(), {0})",
        "os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
        "os.memfd_create('x')",
        "call('shmget', 0, 4096, 0o1600)",
        "call('msgget', 0, 0o1600)",
        "call('semget', 0, 1, 0o1600)",
        "call('unshare', 0x10000000)",
        "call('ptrace', 16, os.getppid(), 0, 0)",
        "call('personality', 0)",
        "call('userfaultfd') if hasattr(libc, 'userfaultfd') else call('inotify_init1', 0)",
    ],
)
def test_what_decoding_does_not_need_is_refused(pool: CodecPool, source: str) -> None:
    assert attempt(pool, source) in (errno.EPERM, errno.EACCES)


@pytest.mark.parametrize("number", [425, 426, 427, 434, 435, 438, 440], ids=lambda number: f"call {number}")
def test_newer_calls_are_not_there(pool: CodecPool, number: int) -> None:
    """io_uring, descriptors of processes, clone3: no way around the list."""
    assert attempt(pool, f"call('syscall', {number}, 0, 0, 0, 0, 0, 0)") == errno.ENOSYS


def test_limits_are_for_good(pool: CodecPool) -> None:
    """Even for root, who could raise them."""
    unlimited = "(resource.RLIM_INFINITY, resource.RLIM_INFINITY)"
    with pytest.raises((RuntimeError, ValueError)):
        pool.run_soon(worker.call, (eval, f"__import__('resource').setrlimit(9, {unlimited})"), []).result(30)


def test_a_worker_can_start_threads_and_signal_itself(pool: CodecPool) -> None:
    source = """
    import threading
    begun = threading.Thread(target=lambda: None)
    begun.start()
    begun.join()
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.raise_signal(signal.SIGUSR2)
    """
    assert attempt(pool, source) == 0


@pytest.mark.parametrize(
    "rudeness",
    [
        "while True: connection.send(bytes(16))",
        "connection.send(b'garbage')",
        "connection.send(bytes(100))",
        "connection.send(bytes([1]))",
        "connection.send(find('run', 'token'))",
    ],
    ids=["flood", "garbage", "too long", "ready twice", "its token again"],
)
def test_a_worker_that_is_rude_to_the_handover_is_replaced(pool: CodecPool, rudeness: str) -> None:
    pool.wait_until_warm()
    source = f"""
    {FIND}
    import time, cope_codec.worker as w
    connection = w._State.receiver._connection
    {rudeness}
    time.sleep(60)
    """
    started = time.monotonic()
    lost = pool.run_soon(worker.call, (exec, textwrap.dedent(source), {}), [])
    waiting = pool.open_soon(clip(4))  # neither this nor the answer to it waits for the rude one
    with pytest.raises(CodecError) as caught:
        lost.result(timeout=15)
    assert caught.value.code == "worker_died"
    assert time.monotonic() - started < 10  # and not the wall time
    assert len(waiting.result(timeout=30).plan.gops) == 1


@pytest.mark.parametrize(
    "change",
    ["w._State.receiver._connection.close()", "w.load = None", "w.run.__code__ = (lambda token: 1 / 0).__code__"],
    ids=["hangs up", "fails", "fails before it has the task"],
)
def test_a_worker_that_can_do_no_task_is_replaced(pool: CodecPool, change: str) -> None:
    take_over(pool, f"import cope_codec.worker as w\n{change}")
    pids = pool.pids()
    with contextlib.suppress(RuntimeError):
        pool.open(clip(4))
    assert len(pool.open(clip(4)).plan.gops) == 1
    assert not set(pool.pids()) & set(pids)


def test_a_worker_that_only_seems_to_have_ended_is_killed() -> None:
    """One closes all that it was given and is deaf to SIGTERM: nothing in the parent may wait for it."""
    source = """
    import os, signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.closerange(0, 256)
    while True: pass
    """
    with CodecPool(1, limits=Limits(wall_s=2)) as pool:
        pool.wait_until_warm()
        with pytest.raises(CodecError):
            pool.run_soon(worker.call, (exec, textwrap.dedent(source), {}), []).result(timeout=20)
        assert len(pool.open_soon(clip(4)).result(timeout=30).plan.gops) == 1


class _SlowKeeper:
    """A pool's lock. Whenever its keeper lets go of it, it pauses until the task at work has ended.

    So the task ends between any two steps of the keeper's, as it now and then does.
    """

    def __init__(self, pool: CodecPool) -> None:
        self._pool, self._lock = pool, threading.RLock()

    def __enter__(self) -> bool:
        return self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()
        (slot,) = self._pool._slots
        until = time.monotonic() + 5
        while threading.current_thread() is self._pool._keeper and slot.job is not None and time.monotonic() < until:
            time.sleep(0.001)


def test_a_task_that_ends_while_the_keeper_looks_is_settled_once() -> None:
    """It had settled the task again, which killed the keeper, and with it all mending of workers."""
    with CodecPool(1, limits=Limits(wall_s=20)) as pool:
        pool.wait_until_warm()
        pool._lock = _SlowKeeper(pool)  # type: ignore[assignment]
        for _ in range(2):
            take_over(pool, SLOWLY + WRITE, data=b"")  # the keeper looks meanwhile
            assert "cannot be used" in failure(pool)
        assert pool.stats().outcomes == {"ok": 6, "worker_died": 2}


def test_the_keeper_survives_what_nobody_thought_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with CodecPool(1) as pool:
        pool.wait_until_warm()
        build, failures = Slot.build, [ValueError("nobody thought of it")]

        def built(slot: Slot) -> None:
            if failures:
                raise failures.pop()
            build(slot)

        monkeypatch.setattr(Slot, "build", built)
        take_over(pool, WRITE, data=b"")
        assert "cannot be used" in failure(pool)
    assert not failures
    assert "nobody thought of it" in caplog.text


def threads_and_workers() -> tuple[list[str], int]:
    """Of all pools in this process: what their threads do, and how many workers there are."""
    names = [thread.name for thread in threading.enumerate()]
    loops = [name.rpartition("(")[2] for name in names if name.startswith("cope-codec") or "_loop" in name]
    workers = 0
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it ends just now
            workers += "multiprocessing.spawn" in " ".join(child.cmdline())
    return sorted(loops), workers


def test_a_worker_that_cannot_be_started_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its process has begun when there is no thread left to look after it."""
    launch, failures = pebble.pool.process.launch_thread, [RuntimeError("can't start new thread")] * 2

    def launched(name: str | None, function: Any, *more: Any) -> Any:
        if failures and function is pebble.pool.process.pool_manager_loop:
            raise failures.pop()
        return launch(name, function, *more)

    with CodecPool(1) as pool:
        pool.wait_until_warm()
        before, fds = threads_and_workers(), descriptors()
        monkeypatch.setattr(pebble.pool.process, "launch_thread", launched)
        take_over(pool, WRITE, data=b"")
        assert "cannot be used" in failure(pool)
        assert not failures
        assert threads_and_workers() == before
        assert descriptors(fds) <= fds
    assert "can't start new thread" in caplog.text


def test_close_does_all_that_can_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    end, failures = Slot.end, [OSError("nobody thought of it")]
    before, fds = threads_and_workers(), descriptors()

    def ended(slot: Slot) -> None:
        end(slot)
        if failures:
            raise failures.pop()

    pool = CodecPool(2)
    pool.wait_until_warm()
    monkeypatch.setattr(Slot, "end", ended)
    tasks = [pool.run_soon(worker.call, (time.sleep, 60), []) for _ in range(3)]
    with pytest.raises(OSError, match="nobody thought of it"):
        pool.close()
    for task in tasks:
        with pytest.raises(CodecError, match="closed"):
            task.result(timeout=0)
    assert threads_and_workers() == before
    assert descriptors(fds) <= fds
