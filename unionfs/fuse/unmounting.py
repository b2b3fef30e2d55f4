"""Unmount a union and wait until its daemon has ended.

Knows mounts, and processes by name. The mounted tree itself is never accessed: its daemon may not answer.
"""

from __future__ import annotations

import errno
import os
import select
import shlex
from contextlib import ExitStack, suppress
from typing import Final, NamedTuple

from unionfs.fuse import mounting
from unionfs.fuse.mounting import FSTYPE, MountError, keeper_name, process_name, resolve_mountpoint
from unionfs.fuse.view_name import is_view
from unionfs.syscalls import mountinfo, peers

_TIMEOUT_S: Final = 10.0
"""Seconds to wait for a daemon's end: without requests it needs milliseconds; while it writes a large file to a slow
disk it may need seconds."""
_LAZY_TIMEOUT_S: Final = 1.0
"""After `--lazy` a daemon continues as long as the union is in use: wait only for one that is about to end. Without
`--lazy`, the processes that keep the union in use are looked up after this time."""
_HELD_TIMEOUT_S: Final = 4.0
"""The same if other mount namespaces have the union mounted, too: those of starting or ending programs release it
soon."""
_BUSY_S: Final = 0.5
"""How long unmounting a busy union is retried."""
_BUSY_AGAIN_S: Final = 0.02
_NAMED: Final = 5
"""Processes listed in a message at most."""


def unmount(path: str, *, lazy: bool = False) -> None:
    """Unmount the union at `path` and wait for its daemon; `lazy`: detach it even if it is in use, without waiting for
    its users. Raises: MountError; ETIMEDOUT if it is unmounted but its daemon continues, EBUSY if it serves views."""
    mountpoint = resolve_mountpoint(path)
    mounted = mountinfo.topmost_at(mountpoint)
    if mounted is None:
        raise MountError("umount", path, "nothing is mounted there", code=errno.EINVAL)
    if mounted.fstype != FSTYPE:
        why = f"not a union but {mounted.fstype}"
        raise MountError("umount", path, why, code=errno.EINVAL, hint=f"try: umount {path}")
    with ExitStack() as stack:
        names = (process_name(mounted.minor), keeper_name(mounted.minor))
        pids = _open_processes(names, mounted.user_id, stack)
        try:
            _unmount_soon(mountpoint, lazy=lazy)
        except MountError as error:
            hint = error.hint
            if error.errno == errno.EBUSY:
                hint = f"`fuser -vm {path}` lists its users; `unionfs umount --lazy {path}` does not wait for them"
            raise MountError("umount", path, error.strerror or "", code=error.errno or 0, hint=hint) from error
        if rest := [there for there in mountinfo.mounts() if there[2:4] == mounted[2:4]]:
            if not is_view(mounted) and (views := [there.mountpoint for there in rest if is_view(there)]):
                raise _still_viewed(path, views)
            if is_view(mounted):
                return  # the daemon continues for the union of the view, or for other views
        left = _wait_for_end(pids, _LAZY_TIMEOUT_S)
        if lazy or not left:
            return
        holders = _holders(mounted, set(left.values()))
        left = _wait_for_end(left, _HELD_TIMEOUT_S if holders else _TIMEOUT_S)
        if left:
            holders = _holders(mounted, set(left.values()))
    if left:
        daemons = [pid for pid in left.values() if _name_of(pid) == process_name(mounted.minor)]
        raise _still_there(path, mounted, daemons or list(left.values()), holders)


def _unmount_soon(mountpoint: str, *, lazy: bool) -> None:
    """Unmount, with retries while it is busy for a moment (a mount program looks for its view). Raises: MountError."""
    from time import monotonic, sleep

    deadline = monotonic() + _BUSY_S
    while True:
        try:
            return mounting.unmount(mountpoint, lazy=lazy)
        except MountError as error:
            if error.errno != errno.EBUSY or monotonic() > deadline:
                raise
        sleep(_BUSY_AGAIN_S)


def _still_viewed(path: str, views: list[str]) -> MountError:
    why = f"unmounted, but its daemon still serves a view of its lowers at {views[0]}"
    hint = f"the daemon ends with the last of its views: unionfs umount {' '.join(map(shlex.quote, views))}"
    return MountError("umount", path, why, code=errno.EBUSY, hint=hint)


def _still_there(path: str, mounted: mountinfo.Mount, daemons: list[int], holders: list[_Holder]) -> MountError:
    daemon = f"its daemon has not ended (process {', '.join(map(str, daemons))})"
    if not holders:
        look = f"as root, `grep -l ' 0:{mounted.minor} ' /proc/*/mountinfo` lists the processes that see it"
        hint = f"another mount namespace may show the union, too; the daemon ends when that namespace ends. {look}"
        return MountError("umount", path, f"unmounted, but {daemon}", code=errno.ETIMEDOUT, hint=hint)
    pids = list(dict.fromkeys(holder.pid for holder in holders))
    named = [f"{pid} ({_name_of(pid)})" for pid in pids[:_NAMED]]
    more = [f"{len(pids) - _NAMED} more"] if len(pids) > _NAMED else []
    first = holders[0]
    here = f"unmounted here, but other mount namespaces still show it: of process {', '.join(named + more)}"
    hint = f"it ends with these processes, or by: nsenter -t {first.pid} -m umount {shlex.quote(first.mountpoint)}"
    return MountError("umount", path, f"{here}; {daemon}", code=errno.ETIMEDOUT, hint=hint)


class _Holder(NamedTuple):
    """A process in whose mount namespace a union is mounted, and the mountpoint."""

    pid: int
    mountpoint: str


def _holders(mounted: mountinfo.Mount, daemons: set[int]) -> list[_Holder]:
    """Return one process of each mount namespace that has the union mounted; only root sees other users' namespaces."""
    found: dict[int, _Holder] = {}
    for name in sorted(filter(str.isdigit, os.listdir("/proc")), key=int):
        with suppress(OSError):
            namespace = os.stat(f"/proc/{name}/ns/mnt").st_ino
            if namespace not in found and int(name) not in daemons:
                for there in mountinfo.mounts(int(name)):
                    if (there.major, there.minor) == (mounted.major, mounted.minor):
                        found[namespace] = _Holder(int(name), there.mountpoint)
    return list(found.values())


def _name_of(pid: int | str) -> str:
    with suppress(OSError), open(f"/proc/{pid}/comm", errors="surrogateescape") as comm:
        return comm.read().rstrip("\n")
    return "ended"


def _open_processes(names: tuple[str, ...], owner: int | None, stack: ExitStack) -> dict[int, int]:
    """Open pidfds of the processes with one of `names` that belong to this user, root or `owner`, the user who mounted
    the union; others may have taken the name. Returns pidfd -> pid; `stack` closes them."""
    found = {}
    for directory in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if _name_of(directory) in names:
                pidfd = os.pidfd_open(int(directory))
                stack.callback(os.close, pidfd)
                # Checked again while the pidfd is open, so that name and owner are of the same process.
                if _name_of(directory) in names and peers.is_trusted(os.stat(f"/proc/{directory}").st_uid, owner):
                    found[pidfd] = int(directory)
    return found


def _wait_for_end(pids: dict[int, int], timeout_s: float) -> dict[int, int]:
    """Wait until the processes have ended. Returns those that have not after `timeout_s`."""
    from time import monotonic

    poll = select.poll()
    for pidfd in pids:
        poll.register(pidfd, select.POLLIN)  # readable when the process has ended (pidfd_open(2))
    waiting = dict(pids)
    deadline = monotonic() + timeout_s
    while waiting and (rest_s := deadline - monotonic()) > 0:
        for pidfd, _ in poll.poll(rest_s * 1000):
            poll.unregister(pidfd)
            del waiting[pidfd]
    return waiting
