"""Takes from the calling process what decoding a video never needs: files by name, sockets, other processes.

A seccomp filter refuses every system call that is not on a short list (`syscalls`). Landlock (Linux 5.13) closes the
file system, TCP and, from version 6 on, abstract sockets and signals a second time. Descriptors that are open, or are
handed over later, keep working: that is how a worker reads its one video.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from typing import Literal

from cope_codec import syscalls

# Whether workers are closed: where the kernel can, not at all, or not without.
Sandboxed = bool | Literal["require"]

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
# The same numbers on every architecture.
_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF = 444, 446
_LANDLOCK_CREATE_RULESET_VERSION = 1
_FS_RIGHTS_OF_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # how many kinds of access the kernel knows
_NET_RIGHTS = 0b11  # bind and connect of TCP, from version 4 on
_SCOPES = 0b11  # abstract sockets of, and signals to, processes outside, from version 6 on

# BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_JMP|JGE|K, BPF_RET|K
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_X32 = 0x40000000  # calls of the x32 ABI have other numbers: refuse them all
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # where they lie in what a filter sees


def landlock_version() -> int:
    """Version of the kernel's Landlock, or 0 where there is none."""
    libc = ctypes.CDLL(None, use_errno=True)
    return max(
        0, int(libc.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_CREATE_RULESET_VERSION))
    )


def has_seccomp() -> bool:
    """The kernel has filters of system calls, and the machine's calls are known here."""
    libc = ctypes.CDLL(None, use_errno=True)
    # No filter lies at address 0: a kernel that looks there has them.
    looked = libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, None, 0, 0) and ctypes.get_errno() == errno.EFAULT
    return bool(looked) and platform.machine() in syscalls.ARCHITECTURES


def missing() -> list[str]:
    """What this machine lacks for a sandbox."""
    return [name for name, there in (("Landlock", landlock_version()), ("seccomp", has_seccomp())) if not there]


def require() -> None:
    """See that a sandbox can be closed here.

    Raises:
        RuntimeError: it cannot.
    """
    if lacking := missing():
        raise RuntimeError(f"codec workers cannot be sandboxed: this machine lacks {' and '.join(lacking)}")


def close_files() -> bool:
    """Refuse this process and its children every file by name, for good; True if the kernel can do that."""
    version = landlock_version()
    if not version:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    rights = (1 << _FS_RIGHTS_OF_ABI.get(version, 16)) - 1
    ruleset = struct.pack("<QQQ", rights, _NET_RIGHTS, _SCOPES)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    fd = libc.syscall(_LANDLOCK_CREATE_RULESET, ruleset, ctypes.c_size_t(size), 0)
    if fd < 0:
        return False
    try:
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            return False
        return bool(libc.syscall(_LANDLOCK_RESTRICT_SELF, fd, 0) == 0)
    finally:
        os.close(fd)


def close_calls() -> bool:
    """Refuse this process all but the system calls of `syscalls`, for good; True if the kernel can do that.

    Those refused fail with EPERM, and newer ones with ENOSYS, as if the kernel did not have them.
    """
    if not has_seccomp():
        return False
    code = ctypes.create_string_buffer(program())
    header = struct.pack("@HP", len(code) // 8, ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return False
    return bool(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0) == 0)


def program() -> bytes:
    """The filter in BPF, for this process: of each call a test of its number, then what it gets."""

    def step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("<HBBI", code, yes, no, value)

    refuse = step(_RETURN, _ERRNO | errno.EPERM)
    steps = [
        step(_LOAD, _ARCHITECTURE),
        step(_JUMP_EQUAL, syscalls.ARCHITECTURES[platform.machine()], 1, 0),
        step(_RETURN, _KILL),
        step(_LOAD, _NUMBER),
        step(_JUMP_AT_LEAST, _X32, 0, 1),
        refuse,
        step(_JUMP_AT_LEAST, syscalls.FIRST_MISSING, 0, 1),
        step(_RETURN, _ERRNO | errno.ENOSYS),
    ]
    for call in syscalls.needed():
        then = []
        if call.argument is not None:
            then.append(step(_LOAD, _ARGUMENTS + 8 * call.argument))
            for position, value in enumerate(call.values):
                then.append(step(_JUMP_EQUAL, value, len(call.values) - position, 0))
            then.append(refuse)
        then.append(step(_RETURN, _ALLOW))
        steps += [step(_JUMP_EQUAL, call.number, 0, len(then)), *then]
    return b"".join([*steps, refuse])
