"""Execute the interpreter again from a mount that is read-only.

A process of ours enters the container before it becomes the container's command. There, /proc/PID/exe leads to the
interpreter of the host: a container of root could have it executed as its command, and then write to it
(CVE-2019-5736). Through a read-only mount it cannot be written to, whatever rights the container has.
"""

from __future__ import annotations

import os
import sys
from typing import Final

from unionfs.syscalls.mounts import MOUNT_ATTR_RDONLY, open_tree

_MARK: Final = "_UNIONFS_PROTECTED"
_SEALS: Final = 0xF  # F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE, fcntl(2)
_ADD_SEALS: Final = 1033
_COPIED: Final = 1 << 30


def protect() -> None:
    """Return if the interpreter runs from such a mount, else execute it again: from a sealed copy in memory where this
    process may not mount.

    Preconditions: the process has done nothing yet that would be wrong to do twice.
    """
    pid, _, name = os.environ.get(_MARK, "").partition(":")
    if pid == str(os.getpid()):
        _write_comm(name)  # execve(2) has made it the number of the descriptor
        return
    os.environ.pop(_MARK, None)
    path = os.path.realpath("/proc/self/exe")
    os.environ[_MARK] = f"{os.getpid()}:{_comm()}"
    arguments = [sys.executable, *sys.orig_argv[1:]]
    try:
        tree = open_tree(path, recursive=False)
        tree.change_attributes(MOUNT_ATTR_RDONLY, 0)
        fd = os.open(f"/proc/self/fd/{tree.fd}", os.O_RDONLY | os.O_CLOEXEC)
        tree.close()
    except OSError:
        fd = _sealed_copy(path)
    os.execve(f"/proc/self/fd/{fd}", arguments, os.environ)


def protect_if_writable() -> None:
    """Like `protect`, but only if this process may write to its interpreter; if it may not, a container cannot
    either."""
    if _MARK in os.environ or os.access("/proc/self/exe", os.W_OK):
        protect()


def _comm() -> str:
    """The name of this process, as ps(1) and pgrep(1) show it."""
    with open("/proc/self/comm", errors="surrogateescape") as comm:
        return comm.read().rstrip("\n")


def _write_comm(name: str) -> None:
    with open("/proc/self/comm", "w", errors="surrogateescape") as comm:
        comm.write(name)


def _sealed_copy(path: str) -> int:
    import fcntl

    fd = os.memfd_create("unionfs", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(path, "rb") as source:
        while os.sendfile(fd, source.fileno(), None, _COPIED):
            pass
    fcntl.fcntl(fd, _ADD_SEALS, _SEALS)
    return fd
