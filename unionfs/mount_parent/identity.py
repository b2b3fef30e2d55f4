"""Compare the properties of two processes that a forked process inherits and cannot change: ids, namespaces, cgroup,
capabilities.

A parent and its client check each other before any message. The name of a parent's socket can be taken by any
process of the network namespace, so the name proves nothing: the kernel identifies the process at the other end.
"""

from __future__ import annotations

import _socket
import binascii
import os
import sys

_SO_PEERPIDFD = 77  # since Linux 6.5: asm-generic/socket.h
_UCRED_BYTES = 12  # struct ucred: pid, uid, gid (unix(7))
_PR_GET_SECUREBITS = 27  # prctl(2)

_NAMESPACES = ("user", "pid", "pid_for_children", "net", "ipc", "uts", "cgroup", "time", "time_for_children")
_STATUS = {
    "Uid": "user ids",
    "Gid": "group ids",
    "Groups": "supplementary groups",
    "CapInh": "capabilities",
    "CapPrm": "capabilities",
    "CapEff": "capabilities",
    "CapBnd": "capabilities",
    "CapAmb": "capabilities",
    "NoNewPrivs": "no_new_privs",
    "Seccomp": "seccomp filters",
}
"""Fields of /proc/PID/status (proc_pid_status(5)), and their names in messages."""


class DifferentError(Exception):
    """The process at the other end is not like this one. `str()` names the difference."""


def facts(pid: int | str = "self") -> list[tuple[str, str]]:
    """Return the properties of a process as (name, value). Raises: OSError if it has ended or may not be read."""
    directory = f"/proc/{pid}/"
    found = [("namespace", os.readlink(f"{directory}ns/{kind}")) for kind in _NAMESPACES]
    if os.geteuid() != 0:  # others cannot enter a mount namespace
        found.append(("mount namespace", os.readlink(f"{directory}ns/mnt")))
    found.append(("cgroup", _content(f"{directory}cgroup")))
    try:
        found.append(("security label", _content(f"{directory}attr/current")))
    except OSError:
        found.append(("security label", ""))  # EINVAL: the kernel has no such module
    for line in _content(f"{directory}status").splitlines():
        name, _, value = line.partition(":")
        if name in _STATUS:
            found.append((_STATUS[name], value.strip()))
    return found


def confinement(own: list[tuple[str, str]]) -> str:
    """Name a confinement of this process that cannot be compared with another process's; "" if there is none.

    `own`: its facts.
    """
    for what, value in own:
        if what in ("no_new_privs", "seccomp filters") and value != "0":
            return f"this process has {what}"
    return "this process has securebits" if _securebits() else ""


def _securebits() -> int:
    import _ctypes  # the C module alone: importing `ctypes` takes as long as all the rest of a client

    prctl = _ctypes.dlsym(_ctypes.dlopen(None, os.RTLD_NOW), "prctl")  # type: ignore[arg-type]
    bits: int = _ctypes.call_function(prctl, (_PR_GET_SECUREBITS, 0, 0, 0, 0))
    return bits


def check_peer(end: _socket.socket, own: list[tuple[str, str]]) -> int:
    """Check that the process at the other end of a connected stream socket has the same properties, and return its pid.

    For a client, the other end is the process that called listen(2). Raises: DifferentError.
    """
    peer = end.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _UCRED_BYTES)
    uid = int.from_bytes(peer[4:8], sys.byteorder)
    if uid != os.geteuid():
        raise DifferentError(f"its socket belongs to user {uid}")
    try:
        pidfd = end.getsockopt(_socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:
        raise DifferentError("the kernel does not identify the owner of its socket (needs Linux 6.5)") from None
    try:
        pid = _pid_of(pidfd)
        theirs = facts(pid)
        if _pid_of(pidfd) != pid:  # the pid was not reused meanwhile
            raise ProcessLookupError
    except (OSError, ValueError):
        raise DifferentError("the process that has its socket cannot be read") from None
    finally:
        os.close(pidfd)
    for (what, value), (_, other) in zip(own, theirs, strict=True):
        if value != other:
            raise DifferentError(f"another process has its socket: not the same {what}")
    return pid


def _pid_of(pidfd: int) -> int:
    """Return the pid of a live process in our /proc. Raises: ProcessLookupError."""
    for line in _content(f"/proc/self/fdinfo/{pidfd}").splitlines():
        if line.startswith("Pid:") and (pid := int(line[4:])) > 0:
            return pid
    raise ProcessLookupError


def code() -> str:
    """Describe the code of this process, its personality and Python's settings: if these differ, daemons may behave
    differently."""
    try:
        personality = _content("/proc/self/personality")  # says where libraries are mapped; cannot be taken over
    except OSError:
        personality = ""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    told = sorted(item for item in os.environ.items() if item[0].startswith("PYTHON") or item[0] == "UNIONFS_PURE")
    return f"{package}\n{sys.prefix}\n{sys.version}\n{sys.getfilesystemencoding()}\n{personality}{told}"


def address(own: list[tuple[str, str]]) -> bytes:
    """Return the abstract name (unix(7)) of the socket of a parent for processes with the facts `own`."""
    told = f"{own}{code()}".encode(errors="surrogateescape")
    return b"\0unionfs-parent/%d/%08x" % (os.geteuid(), binascii.crc32(told))


def _content(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()
