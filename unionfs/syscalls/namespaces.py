"""System calls on process attributes: namespaces, root, hostname, capabilities, prctl(2) settings, keyring, priority.

Each acts on the calling process (strictly: thread) only, but for `io_priority`. Numbers are those of <linux/sched.h>,
<linux/prctl.h> and <linux/capability.h>.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from typing import Final, NamedTuple

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.unshare.argtypes = (ctypes.c_int,)
_libc.setns.argtypes = (ctypes.c_int, ctypes.c_int)
_libc.pivot_root.argtypes = (ctypes.c_char_p, ctypes.c_char_p)
_libc.sethostname.argtypes = _libc.setdomainname.argtypes = (ctypes.c_char_p, ctypes.c_size_t)
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)

CLONE_NEWTIME: Final = 0x00000080  # unshare(2)
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

_PR_SET_PDEATHSIG: Final = 1  # prctl(2)
_PR_SET_DUMPABLE: Final = 4
_PR_SET_KEEPCAPS: Final = 8
_PR_SET_NAME: Final = 15
_PR_CAPBSET_READ: Final = 23
_PR_CAPBSET_DROP: Final = 24
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_GET_NO_NEW_PRIVS: Final = 39
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_RAISE: Final = 2
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_PER_LINUX32: Final = 8  # personality(2)
_NS_GET_NSTYPE: Final = 0xB703  # ioctl_ns(2)

_CAPABILITY_VERSION_3: Final = 0x20080522  # capget(2)
_HIGHEST_CAPABILITY: Final = 63  # two words of 32 bits; the kernel refuses numbers it does not know

_KEYCTL_JOIN_SESSION_KEYRING: Final = 1  # keyctl(2)
_PAGE: Final = 4096  # the smallest

_IOPRIO_WHO_PROCESS: Final = 1  # ioprio_set(2)

_SYS_KEYCTL: Final = {"x86_64": 250, "aarch64": 219, "riscv64": 219}
_SYS_IOPRIO_SET: Final = {"x86_64": 251, "aarch64": 30, "riscv64": 30}
_SYS_IOPRIO_GET: Final = {"x86_64": 252, "aarch64": 31, "riscv64": 31}


class Capabilities(NamedTuple):
    """The sets of a process that capset(2) handles, as masks: bit N is capability number N."""

    effective: int
    permitted: int
    inheritable: int


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def unshare(flags: int) -> None:
    """Leave the namespaces named by CLONE_NEW* for new ones (unshare(2)).

    Raises: EPERM without the right, ENOSPC beyond user.max_*_namespaces, EINVAL when the kernel lacks a kind.
    """
    _check(_libc.unshare(flags))


def setns(fd: int, kinds: int = 0) -> None:
    """Enter the namespace that `fd` refers to, or those of the process of a pidfd (setns(2))."""
    _check(_libc.setns(fd, kinds))


def pivot_root(new_root: str, put_old: str) -> None:
    """Make the mount `new_root` the root, and put the old one at `put_old` (pivot_root(2))."""
    _check(_libc.pivot_root(os.fsencode(new_root), os.fsencode(put_old)), new_root)


def sethostname(name: str) -> None:
    """Set the hostname of our UTS namespace (sethostname(2)). Raises: EINVAL above 64 bytes."""
    raw = os.fsencode(name)
    _check(_libc.sethostname(raw, len(raw)), name)


def setdomainname(name: str) -> None:
    """Set the NIS domain name of our UTS namespace (setdomainname(2)). Raises: EINVAL above 64 bytes."""
    raw = os.fsencode(name)
    _check(_libc.setdomainname(raw, len(raw)), name)


def namespace_type(fd: int) -> int:
    """Return the CLONE_NEW* of the namespace that `fd` refers to (ioctl_ns(2)). Raises: ENOTTY when it is none."""
    return fcntl.ioctl(fd, _NS_GET_NSTYPE)


def set_personality(linux32: bool) -> None:
    """Have uname(2) and the like show a machine of 32 bits, or the usual one (personality(2))."""
    _check(_libc.personality(ctypes.c_ulong(_PER_LINUX32 if linux32 else 0)))


def set_parent_death_signal(signal: int) -> None:
    """Have the kernel send `signal` to this process when its parent ends. A change of credentials clears this."""
    _prctl(_PR_SET_PDEATHSIG, signal)


def set_dumpable(dumpable: bool) -> None:
    """Allow or forbid other processes of the same user to access this one through /proc and ptrace. exec(2) allows it
    again."""
    _prctl(_PR_SET_DUMPABLE, int(dumpable))


def set_child_subreaper() -> None:
    """Become the parent of descendants whose own parent ends."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_no_new_privileges() -> None:
    """Disable set-id bits and file capabilities for this process and its descendants, for ever."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def has_no_new_privileges() -> bool:
    """Whether this process or an ancestor has called set_no_new_privileges."""
    return bool(_libc.prctl(_PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1)


def set_process_name(name: str) -> None:
    """Set the command name that `ps` shows for this process, cut at 15 bytes."""
    buffer = ctypes.create_string_buffer(os.fsencode(name)[:15])
    _prctl(_PR_SET_NAME, ctypes.addressof(buffer))


def set_command_line(text: str) -> None:
    """Overwrite the arguments and the environment that /proc/PID/cmdline and /proc/PID/environ show, with `text`.

    They lie in one piece of this process' memory (proc_pid_stat(5), fields 48 to 51). `os.environ` is a copy and stays.
    Of a text that is longer than that or than a page, which is what the kernel shows, the middle is left out.
    """
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    start, end = int(fields[48 - 3]), int(fields[51 - 3])
    raw, room = os.fsencode(text), min(end - start, _PAGE) - 1
    if len(raw) > room:
        raw = (raw[: room // 2] + b" ... " + raw[-(room // 2 - 5) :])[:room]
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, raw, len(raw))


def capget() -> Capabilities:
    """Return the capabilities of this process (capget(2))."""
    header, data = _Header(_CAPABILITY_VERSION_3, 0), (_Data * 2)()
    _check(_libc.capget(ctypes.byref(header), data))
    low, high = data
    return Capabilities(
        low.effective | high.effective << 32,
        low.permitted | high.permitted << 32,
        low.inheritable | high.inheritable << 32,
    )


def capset(capabilities: Capabilities) -> None:
    """Set the capabilities of this process (capset(2)). Raises: EPERM if the permitted set would grow."""
    header = _Header(_CAPABILITY_VERSION_3, 0)
    data = (_Data * 2)(*(_Data(*(mask >> shift & 0xFFFFFFFF for mask in capabilities)) for shift in (0, 32)))
    _check(_libc.capset(ctypes.byref(header), data))


def limit_bounding_set(kept: int) -> None:
    """Drop all but the mask `kept` from the bounding set (capabilities(7)). Raises: EPERM without CAP_SETPCAP."""
    for number in range(_HIGHEST_CAPABILITY + 1):
        present = _libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0)
        if present < 0:
            return  # EINVAL: the kernel has no capability of this number or above
        if present and not kept >> number & 1:
            _prctl(_PR_CAPBSET_DROP, number)


def keep_capabilities() -> None:
    """Let a change to other user ids leave the permitted set as it is. exec(2) ends this."""
    _prctl(_PR_SET_KEEPCAPS, 1)


def raise_ambient(number: int) -> None:
    """Add a capability to the ambient set. Raises: EPERM unless it is permitted and inheritable."""
    _check(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number, 0, 0))


def clear_ambient_set() -> None:
    """Empty the ambient set (capabilities(7))."""
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)


def join_new_session_keyring() -> bool:
    """Replace our session keyring by an empty one (keyctl(2)). Return False if the kernel has none or refuses."""
    number = _SYS_KEYCTL.get(os.uname().machine)
    if number is None:
        return False
    return bool(_libc.syscall(ctypes.c_long(number), ctypes.c_long(_KEYCTL_JOIN_SESSION_KEYRING), None) >= 0)


def io_priority(pid: int) -> int:
    """Return the I/O priority of a process, of ours for 0: the class and the level in it, as ioprio_get(2) encodes
    them; 0, which is none, where the number of that call is not known here."""
    number = _SYS_IOPRIO_GET.get(os.uname().machine)
    if number is None:
        return 0
    found: int = _libc.syscall(ctypes.c_long(number), ctypes.c_long(_IOPRIO_WHO_PROCESS), ctypes.c_long(pid))
    _check(found)
    return found


def set_io_priority(priority: int) -> None:
    """Set our I/O priority to one that `io_priority` has returned. Raises: EPERM for a class that needs privilege."""
    number = _SYS_IOPRIO_SET[os.uname().machine]
    words = (number, _IOPRIO_WHO_PROCESS, 0, priority)
    _check(_libc.syscall(*map(ctypes.c_long, words)))


def _prctl(option: int, argument: int) -> None:
    _check(_libc.prctl(option, argument, 0, 0, 0))


def _check(result: int, name: str | None = None) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name)
