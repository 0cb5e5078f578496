"""Rights that a Linux process can give up for good: Landlock for files, seccomp for system calls.

Elsewhere, and on a kernel without them, both functions do nothing; the limits of `child` hold all
the same. Sources: `landlock(7)`, `linux/landlock.h`, `seccomp(2)`, `linux/filter.h`, and for the
numbers of system calls `asm/unistd_64.h` and `asm-generic/unistd.h`.
"""

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_SET_SECCOMP: Final = 22
_SECCOMP_MODE_FILTER: Final = 2

# Landlock: the same numbers on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG: Final = 1
_RULE_PATH_BENEATH: Final = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
#: The rights of files that each version of the interface added, as the number of bits in all.
_FILE_RIGHTS: Final = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_NETWORK_RIGHTS: Final = 0b11  # bind and connect of TCP, from version 4

# seccomp
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_ERRNO: Final = 0x00050000
_EPERM, _ENOSYS = 1, 38
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET, _FIRST_ARGUMENT_OFFSET = 0, 4, 16
_CLONE_THREAD: Final = 0x00010000
_X32_BIT: Final = 0x40000000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Calls:
    """System calls of an architecture, by number."""

    audit: int
    clone: int | None
    clone3: int | None
    #: fork and exec
    processes: tuple[int, ...]
    denied: tuple[int, ...]

    def with_children(self) -> "_Calls":
        """Only what is denied whatever a child is for."""
        return replace(self, clone=None, clone3=None, processes=())


#: Denied: new programs and processes, sockets, other processes' memory, mounts, kernel keys and
#: programs, and what opens files past Landlock.
_CALLS: Final = {
    "x86_64": _Calls(
        audit=0xC000003E,
        clone=56,
        clone3=435,
        processes=(57, 58, 59, 322),  # fork, vfork, execve, execveat
        denied=(
            *(41, 42, 43, 49, 50, 53, 288),  # socket, connect, accept, bind, listen, pair, accept4
            *(62, 101, 310, 311),  # kill, ptrace, process_vm_readv, process_vm_writev
            *(155, 161, 165, 166, 272, 308),  # pivot_root, chroot, mount, umount2, unshare, setns
            *(248, 249, 250, 298, 321, 323),  # add_key .. keyctl, perf, bpf, userfaultfd
            *(304, 425, 428, 429, 434, 438),  # open_by_handle_at, io_uring, open_tree.., pidfd
        ),
    ),
    "aarch64": _Calls(
        audit=0xC00000B7,
        clone=220,
        clone3=435,
        processes=(221, 281),
        denied=(
            *(198, 203, 202, 200, 201, 199, 242),
            *(129, 117, 270, 271),
            *(41, 51, 40, 39, 97, 268),
            *(217, 218, 219, 241, 280, 282),
            *(265, 425, 428, 429, 434, 438),
        ),
    ),
}


def _system() -> ctypes.CDLL | None:
    return ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def deny_files(*, read: Iterable[Path], write: Path | None = None) -> bool:
    """From now on files are opened for reading only below `read`, and for anything below `write`.

    (The null device, if it is in `read`, can be written to.) Open files stay open. Where the kernel
    knows how, TCP is denied as well.

    Returns:
        Whether the kernel does it.
    """
    system = _system()
    version = 0 if system is None else int(system.syscall(_CREATE_RULESET, None, 0, _VERSION_FLAG))
    if system is None or version < 1:
        return False
    handled = (1 << _FILE_RIGHTS[min(version, max(_FILE_RIGHTS))]) - 1
    fields = (handled,) if version < 4 else (handled, _NETWORK_RIGHTS)
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    ruleset = int(system.syscall(_CREATE_RULESET, attributes, len(attributes), 0))
    if ruleset < 0:
        return False
    rights = {place: _rights(place) for place in read}
    if write is not None:
        rights[write] = handled
    for path, allowed in rights.items():
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", allowed, place)
        system.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0)
        os.close(place)
    system.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    done = int(system.syscall(_RESTRICT_SELF, ruleset, 0)) == 0
    os.close(ruleset)
    return done


def _rights(place: Path) -> int:
    """What is allowed below a place that may be read."""
    if place == Path(os.devnull):
        return _READ_FILE | _WRITE_FILE
    return _EXECUTE | _READ_FILE | (_READ_DIR if place.is_dir() else 0)


def deny_system_calls(*, children: bool = False) -> bool:
    """From now on there are no new processes and programs, no sockets, no other processes.

    Threads stay possible.

    Args:
        children: New processes and programs stay possible, under the same rule.

    Returns:
        Whether the kernel does it.
    """
    system, calls = _system(), _CALLS.get(platform.machine())
    if system is None or calls is None or struct.calcsize("P") != 8:
        return False
    program = _program(calls.with_children() if children else calls)
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the number of instructions, and a pointer to them.
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    system.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return int(system.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0)) == 0


def _program(calls: _Calls) -> bytes:
    """The filter, in instructions of (code, jump if true, jump if false, value)."""
    body = [
        (_LOAD, 0, 0, _ARCHITECTURE_OFFSET),
        (_JUMP_EQUAL, 1, 0, calls.audit),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_OFFSET),
        (_JUMP_AT_LEAST, 0, 1, _X32_BIT),
        (_RETURN, 0, 0, _KILL),
    ]
    for number in (*calls.denied, *calls.processes):
        body += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | _EPERM)]
    if calls.clone3 is not None:  # the C library takes `clone` then, whose flags can be looked at
        body += [(_JUMP_EQUAL, 0, 1, calls.clone3), (_RETURN, 0, 0, _ERRNO | _ENOSYS)]
    if calls.clone is not None:
        body += [
            (_JUMP_EQUAL, 0, 3, calls.clone),
            (_LOAD, 0, 0, _FIRST_ARGUMENT_OFFSET),
            (_JUMP_BITS, 1, 0, _CLONE_THREAD),
            (_RETURN, 0, 0, _ERRNO | _EPERM),
        ]
    body.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *each) for each in body)
