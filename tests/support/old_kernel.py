"""Run a command as on an older kernel: `python -m tests.support.old_kernel FIRST COMMAND...`.

System calls with the number FIRST and above answer ENOSYS in the command and its descendants, by a seccomp(2) filter.
New system calls have the same numbers on every architecture: 437 openat2 (Linux 5.6), 442 mount_setattr (5.12). Run as
root, so that set-user-id programs keep their effect below it.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from typing import Final

OPENAT2: Final = 437
MOUNT_SETATTR: Final = 442

_X32: Final = 0x40000000
_LOAD, _NOT_LESS, _GIVE = 0x20, 0x35, 0x06  # <linux/bpf_common.h>
_ALLOW, _ENOSYS = 0x7FFF0000, 0x00050000 | 38  # SECCOMP_RET_ALLOW; SECCOMP_RET_ERRNO and the errno
_SET_SECCOMP, _FILTER_MODE = 22, 2  # prctl(2)


def main(first: int, command: list[str]) -> None:
    """Execute the command. Raises OSError."""
    instructions = [(_LOAD, 0, 0, 0), (_NOT_LESS, 1, 0, _X32), (_NOT_LESS, 1, 0, first)]
    instructions += [(_GIVE, 0, 0, _ALLOW), (_GIVE, 0, 0, _ENOSYS)]
    program = b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)
    code = ctypes.create_string_buffer(program)
    wanted = struct.pack("HxxxxxxP", len(instructions), ctypes.addressof(code))  # struct sock_fprog
    if ctypes.CDLL(None, use_errno=True).prctl(_SET_SECCOMP, _FILTER_MODE, wanted) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
