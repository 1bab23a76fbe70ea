"""Takes from the calling process what decoding a video never needs: files by name, sockets, other programs.

Landlock (Linux 5.13) closes the file system, a seccomp filter the network and `exec`. Descriptors that are open, or
are handed over later, keep working: that is how a worker reads its one video.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
# The same numbers on every architecture.
_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF = 444, 446
_LANDLOCK_CREATE_RULESET_VERSION = 1
_FS_RIGHTS_OF_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # how many kinds of access the kernel knows
_NET_RIGHTS = 0b11  # bind and connect of TCP, from version 4 on

# System calls refused with EPERM: new sockets, and ways into other programs.
_REFUSED = {
    "x86_64": (
        0xC000003E,
        {"socket": 41, "connect": 42, "bind": 49, "socketpair": 53, "execve": 59, "ptrace": 101, "execveat": 322}
        | {"process_vm_readv": 310, "process_vm_writev": 311},
    ),
    "aarch64": (
        0xC00000B7,
        {"socket": 198, "socketpair": 199, "bind": 200, "connect": 203, "execve": 221, "ptrace": 117, "execveat": 281}
        | {"process_vm_readv": 270, "process_vm_writev": 271},
    ),
}
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000 | 1, 0x80000000  # the 1 is EPERM
_X32 = 0x40000000  # calls of the x32 ABI have other numbers: refuse them all
_JUMP_AT_LEAST = 0x35


def landlock_version() -> int:
    """Version of the kernel's Landlock, or 0 where there is none."""
    libc = ctypes.CDLL(None, use_errno=True)
    return max(
        0, int(libc.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_CREATE_RULESET_VERSION))
    )


def close_files() -> bool:
    """Refuse this process and its children every file by name, for good; True if the kernel can do that."""
    version = landlock_version()
    if not version:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    rights = (1 << _FS_RIGHTS_OF_ABI.get(version, 16)) - 1
    # Older kernels take the longer structure too, as long as what they do not know is zero.
    ruleset = struct.pack("<QQ", rights, _NET_RIGHTS if version >= 4 else 0)
    size = len(ruleset) if version >= 4 else 8
    fd = libc.syscall(_LANDLOCK_CREATE_RULESET, ruleset, ctypes.c_size_t(size), 0)
    if fd < 0:
        return False
    try:
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            return False
        return bool(libc.syscall(_LANDLOCK_RESTRICT_SELF, fd, 0) == 0)
    finally:
        os.close(fd)


def close_network() -> bool:
    """Refuse this process and its children new sockets and programs, for good; True if the kernel can do that."""
    known = _REFUSED.get(platform.machine())
    if known is None:
        return False
    architecture, calls = known

    def step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("<HBBI", code, yes, no, value)

    refuse = len(calls) + 1  # steps from here to the one that refuses
    program = [step(_LOAD, 4), step(_JUMP_EQUAL, architecture, 1, 0), step(_RETURN, _KILL), step(_LOAD, 0)]
    program.append(step(_JUMP_AT_LEAST, _X32, refuse, 0))
    for position, number in enumerate(calls.values()):
        program.append(step(_JUMP_EQUAL, number, refuse - 1 - position, 0))
    program += [step(_RETURN, _ALLOW), step(_RETURN, _REFUSE)]
    code = ctypes.create_string_buffer(b"".join(program))
    header = struct.pack("@HP", len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return False
    return bool(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0) == 0)
