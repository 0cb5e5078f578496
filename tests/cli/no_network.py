"""Run command lines in a process that the kernel ends when it, or a child, opens a network socket.

Started as `python -m tests.cli.no_network`, with a JSON list of command lines on stdin; each exit
code is printed as a JSON line. The filter is seccomp's (`man 2 seccomp`): it needs no privilege,
and children inherit it.
"""

import ctypes
import json
import platform
import socket
import struct
import sys
from typing import Final

#: `AUDIT_ARCH_*` and the number of `socket(2)`, by machine.
_MACHINES: Final = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _MODE_FILTER = 22, 38, 2
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_NUMBER, _MACHINE, _FIRST_ARGUMENT = 0, 4, 16
_KILL_PROCESS, _ALLOW = 0x80000000, 0x7FFF0000


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def is_supported() -> bool:
    """Whether this system has such a filter."""
    return sys.platform == "linux" and platform.machine() in _MACHINES


def forbid_network() -> None:
    """From here on `socket(2)` of any family but AF_UNIX ends the process with SIGSYS."""
    machine, number = _MACHINES[platform.machine()]
    steps = (
        (_LOAD, 0, 0, _MACHINE),
        (_EQUAL, 0, 5, machine),
        (_LOAD, 0, 0, _NUMBER),
        (_EQUAL, 0, 2, number),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_EQUAL, 0, 1, socket.AF_UNIX),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _KILL_PROCESS),
    )
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    libc = ctypes.CDLL(None, use_errno=True)
    program = _Program(len(steps), code)
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0),
    ):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "prctl: the filter cannot be set")


def main() -> None:
    commands = json.load(sys.stdin)
    forbid_network()
    from llama_edge.cli.app import run_program

    for command in commands:
        done = {"command": command, "code": run_program(command)}
        sys.stdout.write(json.dumps(done) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
