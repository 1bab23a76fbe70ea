"""The system calls that decoding a video takes: what a worker may still ask the kernel for."""

from __future__ import annotations

import fcntl
import os
import platform
from dataclasses import dataclass

# Number on x86_64, number on aarch64. None of these takes a path, makes a descriptor of a new kind, starts a process,
# or names another one, except to read its CPU affinity.
_FREE = """
    read 0 63, write 1 64, close 3 57, fstat 5 80, poll 7 -, lseek 8 62, mmap 9 222, mprotect 10 226, munmap 11 215,
    brk 12 214, rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, pread64 17 67, pwrite64 18 68,
    readv 19 65, writev 20 66, select 23 -, sched_yield 24 124, mremap 25 216, madvise 28 233, dup 32 23, dup2 33 -,
    nanosleep 35 101, getitimer 36 102, setitimer 38 103, getpid 39 172, sendto 44 206, recvfrom 45 207,
    sendmsg 46 211, recvmsg 47 212, exit 60 93, uname 63 160, ftruncate 77 46, gettimeofday 96 169,
    getrusage 98 165, sysinfo 99 179, times 100 153, getuid 102 174, getgid 104 176, geteuid 107 175,
    getegid 108 177, getppid 110 173, sigaltstack 131 132, gettid 186 178, time 201 -, futex 202 98,
    sched_getaffinity 204 123, set_tid_address 218 96, restart_syscall 219 128, clock_gettime 228 113,
    clock_getres 229 114, clock_nanosleep 230 115, exit_group 231 94, pselect6 270 72, ppoll 271 73,
    set_robust_list 273 99, dup3 292 24, preadv 295 69, pwritev 296 70, getcpu 309 168, getrandom 318 278,
    membarrier 324 283, preadv2 327 286, pwritev2 328 287, rseq 334 293
"""
# Those of which only some values of one argument are let through: its position, the values, and the numbers as above.
_THREAD = 0x3D0F00, 0x7D0F00  # the flags that glibc and musl start threads with
_FCNTL = (fcntl.F_DUPFD, fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL, 1030, 1033, 1034)  # F_DUPFD_CLOEXEC, F_*_SEALS
_CLOSE_ON_EXEC = 0x5451, 0x5450  # FIOCLEX, FIONCLEX
_NAMES = 15, 16, 0x53564D41  # PR_SET_NAME, PR_GET_NAME, PR_SET_VMA: of threads and of memory
_EMPTY_PATH = (0x1000,)  # AT_EMPTY_PATH: how glibc asks for the state of an open file
# What came after 5.0 has one number everywhere. C libraries try such calls and fall back where they are missing:
# clone3, whose flags a filter cannot see, to clone. io_uring, which is no way around this list, is among them.
FIRST_MISSING = 424

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


@dataclass(frozen=True, slots=True)
class Call:
    """A system call that is let through.

    Attributes:
        number: of this machine.
        argument: position of the argument that is looked at; None lets every call through.
        values: what its lower 32 bits may be.
    """

    number: int
    argument: int | None = None
    values: tuple[int, ...] = ()


def needed() -> list[Call]:
    """What this process may call; `ARCHITECTURES` must have its machine."""
    machine = list(ARCHITECTURES).index(platform.machine())
    calls = []
    for entry in _FREE.split(","):
        number = entry.split()[1 + machine]
        if number != "-":
            calls.append(Call(int(number)))
    for numbers, argument, values in (
        ((56, 220), 0, _THREAD),  # clone
        ((72, 25), 1, _FCNTL),
        ((16, 29), 1, _CLOSE_ON_EXEC),  # ioctl
        ((157, 167), 0, _NAMES),  # prctl
        ((234, 131), 0, (os.getpid(),)),  # tgkill: abort() and raise()
        ((262, 79), 3, _EMPTY_PATH),  # newfstatat
    ):
        calls.append(Call(numbers[machine], argument, values))
    return calls
