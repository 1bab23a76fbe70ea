"""The filter of system calls, run step by step as the kernel would, for both architectures."""

from __future__ import annotations

import errno
import os
import platform
import struct

import pytest

from cope_codec import sandbox, syscalls

ALLOW, KILL = 0x7FFF0000, 0x80000000
EPERM, ENOSYS = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS


def verdict(program: bytes, architecture: int, number: int, *arguments: int) -> int:
    """What the program returns for a system call."""
    seen = struct.pack("<IIQ6Q", number, architecture, 0, *(*arguments, *[0] * 6)[:6])
    steps = list(struct.iter_unpack("<HBBI", program))
    held, at = 0, 0
    while True:
        code, yes, no, value = steps[at]
        at += 1
        if code == 0x06:
            return value
        if code == 0x20:
            (held,) = struct.unpack_from("<I", seen, value)
        else:
            assert code in (0x15, 0x35)
            at += yes if (held == value if code == 0x15 else held >= value) else no


# name: (number on x86_64, on aarch64, arguments, what it gets)
CALLS: dict[str, tuple[int, int, tuple[int, ...], int]] = {
    "read": (0, 63, (5,), ALLOW),
    "exit_group": (231, 94, (0,), ALLOW),
    "recvmsg": (47, 212, (5,), ALLOW),
    "a thread": (56, 220, (0x3D0F00,), ALLOW),
    "a process": (56, 220, (17,), EPERM),
    "a thread in a new namespace": (56, 220, (0x3D0F00 | 0x40000000,), EPERM),
    "clone3": (435, 435, (), ENOSYS),
    "io_uring_setup": (425, 425, (), ENOSYS),
    "socket": (41, 198, (2, 1), EPERM),
    "connect": (42, 203, (5,), EPERM),
    "execve": (59, 221, (), EPERM),
    "openat": (257, 56, (), EPERM),
    "kill": (62, 129, (1, 9), EPERM),
    "prlimit64": (302, 261, (0,), EPERM),
    "memfd_create": (319, 279, (), EPERM),
    "fstat by newfstatat": (262, 79, (5, 0, 0, 0x1000), ALLOW),
    "stat by newfstatat": (262, 79, (5, 0, 0, 0), EPERM),
    "F_GETFD": (72, 25, (5, 1), ALLOW),
    "F_SETOWN": (72, 25, (5, 8), EPERM),
    "FIOCLEX": (16, 29, (5, 0x5451), ALLOW),
    "TIOCSTI": (16, 29, (5, 0x5412), EPERM),
    "PR_SET_NAME": (157, 167, (15,), ALLOW),
    "PR_SET_MM": (157, 167, (35,), EPERM),
    "tgkill, another's": (234, 131, (1, 1, 9), EPERM),
}


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("name", CALLS)
def test_what_a_call_gets(machine: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    *numbers, arguments, want = CALLS[name]
    number = numbers[machine == "aarch64"]
    assert verdict(sandbox.program(), syscalls.ARCHITECTURES[machine], number, *arguments) == want


def test_signals_to_itself_are_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert verdict(sandbox.program(), syscalls.ARCHITECTURES["x86_64"], 234, os.getpid(), os.getpid(), 6) == ALLOW


def test_calls_of_another_architecture_are_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their numbers mean something else: 32-bit programs on x86_64, and the x32 ABI."""
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert verdict(sandbox.program(), 0x40000003, 3) == KILL
    assert verdict(sandbox.program(), syscalls.ARCHITECTURES["x86_64"], 0x40000000) == EPERM
