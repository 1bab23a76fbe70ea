"""The pool: the same arrays as without it, and what it does with workers that die, hang, bloat or are called back."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from clips import broken_clips, clip, harmed_clips
from leftovers import shared_memory

import cope_codec
from cope_codec import CodecError, VideoOptions, cache, processes, sandbox, worker
from cope_codec.groups import decoded_packets, split
from cope_codec.limits import Limits
from cope_codec.pool import CodecPool

pytestmark = pytest.mark.alone

SIDE = 64


@pytest.fixture(scope="module")
def pool() -> Iterator[CodecPool]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COPE_TEST_SECRET", "s")
        with CodecPool(2, limits=Limits(wall_s=5)) as made:
            made.wait_until_warm()
            yield made


def do(pool: CodecPool, function: Callable[..., object], *arguments: Any) -> Any:
    """Submit any function that the workers have already imported: they cannot read other modules."""
    return pool.run_soon(worker.call, (function, *arguments), [])


# Cancelling takes 45 to 185 ms on an idle machine (docs/measurements.md); this only tells it from waiting for the end.
SOON_S = 1.5


def until(what: Callable[[], bool], within_s: float = 30) -> float:
    started = time.monotonic()
    while not what():
        assert time.monotonic() - started < within_s, "it did not happen"
        time.sleep(0.002)
    return time.monotonic() - started


def running(pool: CodecPool, function: Callable[..., object], *arguments: Any) -> Any:
    job = do(pool, function, *arguments)
    until(lambda: job.pid is not None)
    return job


def descriptors() -> int:
    gc.collect()  # what only waits for the collector is no leak
    return len(os.listdir("/proc/self/fd"))


def same(ours: cope_codec.GopPrimitives, theirs: cope_codec.GopPrimitives) -> None:
    assert repr(ours) == repr(theirs)
    for name, array in ours.arrays().items():
        np.testing.assert_array_equal(array, theirs.arrays()[name], err_msg=name)
        assert not array.flags.writeable
    for name in ("missing", "corrupt", "interlaced", "rotation", "motion_width", "motion_height"):
        assert getattr(ours, name) == getattr(theirs, name), name


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "h264": ({"seconds": 24}, {}),
    "h264, one stream keyframe": ({"seconds": 24, "gop": 600}, {"gop_slots": 3}),
    "h264, transcode": ({"seconds": 12}, {"mode": "transcode", "gop_slots": 4}),
    "mpeg4": ({"seconds": 12, "codec": "mpeg4", "b_frames": 0}, {"fps": 2.0, "keyframes_per_gop": 2}),
    "vp8": ({"seconds": 8, "codec": "libvpx", "container": "webm", "b_frames": 0}, {"gop_slots": 2}),
    "transport stream, clip": ({"seconds": 24, "container": "mpegts"}, {"start_s": 3.3, "end_s": 17.0, "gop_slots": 3}),
    "dense": ({"seconds": 12}, {"frames": 20}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("as_file", [False, True])
def test_the_arrays_are_those_of_the_process_itself(pool: CodecPool, name: str, as_file: bool, tmp_path: Path) -> None:
    how, options = CASES[name]
    source: bytes | Path = clip(**how)
    if as_file:
        source = tmp_path / "video"
        source.write_bytes(clip(**how))
    want = cope_codec.open(source, **options)
    video = pool.open(source, VideoOptions(**options))
    assert video.plan == want.plan
    assert repr(video.index) == repr(want.index)
    gops = list(video.gops(SIDE))
    assert len(gops) == len(want.plan.gops)
    for ours, theirs in zip(gops, want.gops(SIDE), strict=True):
        same(ours, theirs)


def test_the_cache_takes_a_pooled_video_as_any_other(pool: CodecPool) -> None:
    store = cache.PrimitivesCache()
    video = pool.open(clip(12), VideoOptions(gop_slots=4))
    first = cache.extract(video, SIDE, store)
    again = cache.extract(pool.open(clip(12), VideoOptions(gop_slots=4)), SIDE, store)
    assert (store.hits, store.misses) == (3, 3)
    assert all(ours is theirs for ours, theirs in zip(first, again, strict=True))


def test_asyncio(pool: CodecPool) -> None:
    async def both() -> list[list[cope_codec.GopPrimitives]]:
        found = await asyncio.gather(pool.extract(clip(12), None, SIDE), pool.extract(clip(24), None, SIDE))
        return [gops for _, gops in found]

    for gops, data in zip(asyncio.run(both()), (clip(12), clip(24)), strict=True):
        for ours, theirs in zip(gops, cope_codec.open(data).gops(SIDE), strict=True):
            same(ours, theirs)


def test_gops_of_one_video_run_in_several_workers(pool: CodecPool) -> None:
    video = pool.open(clip(24))
    groups = split(video.plan.gops, 2, 8)
    assert [gop for group in groups for gop in group] == list(video.plan.gops)
    assert len(groups) == 2
    assert sum(map(decoded_packets, groups)) <= 1.2 * decoded_packets(video.plan.gops)


def test_a_task_of_large_pictures_has_fewer_gops() -> None:
    plan = cope_codec.open(clip(24), gop_slots=2).plan  # a stream keyframe every 2 s, as every GOP
    most = decoded_packets(plan.gops) // 4
    groups = split(plan.gops, 1, 8, most)
    assert [gop for group in groups for gop in group] == list(plan.gops)
    assert len(groups) >= 4
    assert max(map(decoded_packets, groups)) <= most * 1.3


def test_gops_that_share_all_their_decoding_stay_together() -> None:
    plan = cope_codec.open(clip(24, gop=600), gop_slots=3).plan
    groups = split(plan.gops, 2, 8)
    # One stream keyframe: every group must decode from the start, so the last one is as long as the whole.
    assert max(map(decoded_packets, groups)) == decoded_packets(plan.gops)
    assert len(groups) == 1


def test_broken_videos_get_the_codes_of_the_process_itself(pool: CodecPool) -> None:
    for name, data in {**broken_clips(), **harmed_clips()}.items():
        codes = []
        for opener in (cope_codec.open, pool.open):
            try:
                codes.append([repr(gop) for gop in opener(data).gops(SIDE)])
            except CodecError as error:
                codes.append([error.code, str(error), repr(error.param)])
        assert codes[0] == codes[1], name


def test_a_missing_file_is_an_os_error(pool: CodecPool, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        pool.open(tmp_path / "nothing.mp4")


def code_of(job: Any) -> str:
    with pytest.raises(CodecError) as caught:
        job.result(timeout=30)
    return caught.value.code


@pytest.mark.parametrize(
    ("function", "argument", "code"),
    [
        (os._exit, 3, "worker_died"),
        (signal.raise_signal, signal.SIGSEGV, "worker_died"),
        (bytearray, 3 << 30, "out_of_memory"),
        (time.sleep, 60, "timeout"),
    ],
    ids=["exits", "crashes", "bloats", "hangs"],
)
def test_only_the_task_of_a_lost_worker_fails(pool: CodecPool, function: Any, argument: int, code: str) -> None:
    pool.wait_until_warm()
    restarts = pool.stats().restarts
    started = time.monotonic()
    lost = running(pool, function, argument) if code == "timeout" else do(pool, function, argument)
    others = [pool.open_soon(clip(4)) for _ in range(4)]
    assert code_of(lost) == code
    assert time.monotonic() - started < 7
    assert [len(other.result(timeout=30).plan.gops) for other in others] == [1] * 4
    pool.wait_until_warm()
    assert pool.stats().restarts == restarts + 1


def kill_in_the_middle(pool: CodecPool, data: bytes) -> None:
    video = pool.open(data, VideoOptions(gop_slots=2, fps=4))
    halves = video.plan.gops[:24], video.plan.gops[24:]
    jobs: list[Any] = [pool.submit(video, 768, half) for half in halves]  # a second of work each
    until(lambda: all(job.pid is not None for job in jobs))
    time.sleep(0.1)
    for pid in {job.pid for job in jobs}:
        os.kill(pid, signal.SIGKILL)
    assert [code_of(job) for job in jobs] == ["worker_died"] * 2


def test_workers_killed_in_the_middle_leave_nothing(pool: CodecPool) -> None:
    pool.wait_until_warm()
    before = shared_memory(), descriptors()
    data = clip(24, width=640, height=480)
    for _ in range(3):
        kill_in_the_middle(pool, data)
        assert shared_memory() == before[0]
        pool.wait_until_warm()
    until(lambda: descriptors() <= before[1] + 4)
    assert len(list(pool.open(clip(12)).gops(SIDE))) == 2


def test_an_idle_worker_that_dies_is_replaced(pool: CodecPool) -> None:
    pool.wait_until_warm()
    pids = pool.pids()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not set(pids) & set(pool.pids()))
    pool.wait_until_warm()
    assert len(list(pool.open(clip(12)).gops(SIDE))) == 2


def test_a_cancelled_task_leaves_its_worker_warm(pool: CodecPool) -> None:
    pool.wait_until_warm()
    pids, restarts = pool.pids(), pool.stats().restarts
    job = running(pool, time.sleep, 60)
    assert job.cancel()
    assert until(lambda: pool.stats().busy == 0) < SOON_S
    assert pool.pids() == pids
    assert pool.stats().restarts == restarts
    assert do(pool, int, "7").result(timeout=5) == 7


def test_a_worker_that_does_not_let_go_is_killed(pool: CodecPool) -> None:
    pool.wait_until_warm()
    job = running(pool, sum, range(10**13))  # a loop in C, deaf to the cancel signal
    pid = job.pid
    assert job.cancel()
    # Its process ends, and is no more than a zombie until pebble collects it.
    assert until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie") < SOON_S
    pool.wait_until_warm()


def test_leaving_a_loop_frees_the_workers(pool: CodecPool) -> None:
    pool.wait_until_warm()
    gops = pool.open(clip(24, width=640, height=480), VideoOptions(gop_slots=1, fps=15, max_gops=360)).gops(384)
    next(gops)
    gops.close()
    assert until(lambda: pool.stats().busy == 0 and pool.stats().queued == 0) < SOON_S


def test_cancelling_a_coroutine_frees_the_workers(pool: CodecPool) -> None:
    pool.wait_until_warm()

    async def leave() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(pool.extract(clip(24, width=640, height=480), VideoOptions(fps=15), 384), 0.15)

    asyncio.run(leave())
    assert until(lambda: pool.stats().busy == 0 and pool.stats().queued == 0) < SOON_S


def test_the_queue_is_bounded() -> None:
    with CodecPool(1, max_queue=2) as pool:
        pool.wait_until_warm()
        first = running(pool, time.sleep, 60)
        waiting = [pool.open_soon(clip(4)), pool.open_soon(clip(4))]
        stats = pool.stats()
        assert (stats.workers, stats.busy, stats.queued) == (1, 1, 2)
        with pytest.raises(CodecError) as caught:
            pool.open(clip(4))
        assert caught.value.code == "queue_full"
        time.sleep(0.1)
        assert 0.1 <= pool.stats().oldest_s < 5
        assert waiting[1].cancel()
        assert pool.stats().queued == 1
        first.cancel()
        assert len(waiting[0].result(timeout=10).plan.gops) == 1


def test_close_leaves_no_process_and_settles_every_task() -> None:
    shm, fds = shared_memory(), descriptors()
    pool = CodecPool(2)
    pool.wait_until_warm()
    pids = pool.pids()
    jobs = [running(pool, time.sleep, 60), running(pool, sum, range(10**13)), do(pool, int)]
    started = time.monotonic()
    pool.close()
    assert time.monotonic() - started < 3
    assert [code_of(job) for job in jobs] == ["cancelled"] * 3
    assert not any(map(psutil.pid_exists, pids))
    assert not [child for child in multiprocessing.active_children() if child.pid in pids]
    with pytest.raises(CodecError):
        pool.open(clip(4))
    del pool, jobs
    until(lambda: shared_memory() <= shm)
    until(lambda: descriptors() <= fds + 3)  # the interpreter keeps a pipe to its resource tracker


def test_results_outlive_the_pool() -> None:
    with CodecPool(1) as pool:
        (gop,) = pool.open(clip(4)).gops(SIDE)
    (want,) = cope_codec.open(clip(4)).gops(SIDE)
    same(gop, want)


def test_all_threads_of_a_worker_are_in_its_sandbox(pool: CodecPool) -> None:
    pool.wait_until_warm()
    list(pool.open(clip(4)).gops(SIDE))
    for pid in pool.pids():
        statuses = [task.joinpath("status").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
        assert [status.split("Seccomp:\t")[1][0] for status in statuses] == ["2"] * len(statuses)


def test_workers_use_nothing_that_has_a_name(pool: CodecPool) -> None:
    pool.wait_until_warm()
    list(pool.open(clip(4)).gops(SIDE))
    for pid in pool.pids():
        assert "/dev/shm/" not in Path(f"/proc/{pid}/maps").read_text()


PARENT = """
import os, sys, time
from cope_codec import worker
from cope_codec.pool import CodecPool

if __name__ == "__main__":
    pool = CodecPool(2)
    pool.wait_until_warm()
    pool.run_soon(worker.call, (time.sleep, 60), [])
    time.sleep(0.3)
    print(*pool.pids(), flush=True)
    os.kill(os.getpid(), 9)
"""


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    pids = [int(word) for word in done.stdout.split()]
    assert len(pids) == 2, done.stderr
    until(lambda: not any(map(psutil.pid_exists, pids)), within_s=5)


def test_a_bug_is_told_to_the_log_and_not_to_clients(pool: CodecPool, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(RuntimeError) as caught:
        do(pool, os.open, "/srv/secret/path", os.O_RDONLY).result(timeout=10)
    assert str(caught.value) == "a codec worker failed unexpectedly; the log says more"
    assert "PermissionError" in caplog.text


def test_workers_get_no_secrets_from_the_environment(pool: CodecPool) -> None:
    pool.wait_until_warm()
    assert "COPE_TEST_SECRET" in os.environ
    for pid in pool.pids():
        entries = Path(f"/proc/{pid}/environ").read_text().split("\0")
        names = {entry.partition("=")[0] for entry in entries if entry}
        assert "PATH" in names
        assert names <= set(processes.environment())
    assert "COPE_TEST_SECRET" not in processes.environment()


def test_workers_hold_only_pipes_to_their_parent(pool: CodecPool) -> None:
    pool.wait_until_warm()
    for pid in pool.pids():
        held = [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()]
        kinds = sorted(name.partition(":")[0] for name in held if name != os.devnull)
        assert kinds == ["pipe"] * 4 + ["socket"], held  # two of pebble's, two of multiprocessing's; the handover


def test_tasks_that_are_taken_back_cost_no_worker(pool: CodecPool) -> None:
    pool.wait_until_warm()
    restarts = pool.stats().restarts
    for _ in range(50):
        do(pool, int).cancel()
    assert do(pool, int, "7").result(timeout=10) == 7
    assert pool.stats().restarts == restarts


def test_the_handover_turns_strangers_away(pool: CodecPool) -> None:
    pool.wait_until_warm()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
        stranger.connect(pool._handover.address)
        assert stranger.recv(1) == b""
    assert len(pool.pids()) == 2


@pytest.mark.parametrize(("name", "lacking"), [("landlock_version", "Landlock"), ("has_seccomp", "seccomp")])
def test_a_required_sandbox_that_cannot_be(name: str, lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, name, lambda: 0)
    with pytest.raises(RuntimeError, match=f"this machine lacks {lacking}$"):
        CodecPool(1, sandboxed="require")
