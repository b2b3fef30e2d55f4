"""Unmount a union, and return when the process that served it has gone.

Knows mounts and processes by their names. The mounted tree itself is never looked at: its daemon may not answer.
"""

from __future__ import annotations

import errno
import os
import select
import shlex
from contextlib import ExitStack, suppress
from typing import Final, NamedTuple

from unionfs.fuse import mounting
from unionfs.fuse.mounting import FSTYPE, MountError, process_name, resolve_mountpoint
from unionfs.syscalls import mountinfo, peers

_TIMEOUT_S: Final = 10.0
"""A daemon without requests needs milliseconds; one that is writing a large file to a slow disk may need seconds."""
_LAZY_TIMEOUT_S: Final = 1.0
"""After `--lazy` a daemon rightly lives on as long as anybody uses the union: wait only for one that is about to go.
Otherwise it is time to look who keeps it, before waiting longer."""
_HELD_TIMEOUT_S: Final = 4.0
"""While other mount namespaces show the union, too: those of programs that just start or end let it go soon."""
_NAMED: Final = 5
"""Processes that a message names."""


def unmount(path: str, *, lazy: bool = False) -> None:
    """Unmount the union seen at `path` and wait for its daemon; `lazy`: take it away although it is in use, without
    waiting for its users. Raises: MountError; ETIMEDOUT if it is unmounted and its daemon lives on."""
    mountpoint = resolve_mountpoint(path)
    mounted = mountinfo.topmost_at(mountpoint)
    if mounted is None:
        raise MountError("umount", path, "nothing is mounted there", code=errno.EINVAL)
    if mounted.fstype != FSTYPE:
        why = f"not a union but {mounted.fstype}"
        raise MountError("umount", path, why, code=errno.EINVAL, hint=f"try: umount {path}")
    with ExitStack() as stack:
        pids = _open_processes(process_name(mounted.minor), mounted.user_id, stack)
        try:
            mounting.unmount(mountpoint, lazy=lazy)
        except MountError as error:
            hint = error.hint
            if error.errno == errno.EBUSY:
                hint = f"`fuser -vm {path}` lists who uses it; `unionfs umount --lazy {path}` does not wait for them"
            raise MountError("umount", path, error.strerror or "", code=error.errno or 0, hint=hint) from error
        left = _wait_for_end(pids, _LAZY_TIMEOUT_S)
        if lazy or not left:
            return
        holders = _holders(mounted, set(left.values()))
        left = _wait_for_end(left, _HELD_TIMEOUT_S if holders else _TIMEOUT_S)
        if left:
            holders = _holders(mounted, set(left.values()))
    if left:
        raise _still_there(path, mounted, list(left.values()), holders)


def _still_there(path: str, mounted: mountinfo.Mount, daemons: list[int], holders: list[_Holder]) -> MountError:
    daemon = f"its daemon is still there (process {', '.join(map(str, daemons))})"
    if not holders:
        look = f"as root, `grep -l ' 0:{mounted.minor} ' /proc/*/mountinfo` lists the processes that see it"
        hint = f"another mount namespace may show the union, too; the daemon goes when that ends. {look}"
        return MountError("umount", path, f"unmounted, but {daemon}", code=errno.ETIMEDOUT, hint=hint)
    pids = list(dict.fromkeys(holder.pid for holder in holders))
    named = [f"{pid} ({_name_of(pid)})" for pid in pids[:_NAMED]]
    more = [f"{len(pids) - _NAMED} more"] if len(pids) > _NAMED else []
    first = holders[0]
    here = f"unmounted here, but other mount namespaces still show it: of process {', '.join(named + more)}"
    hint = f"it ends with these processes, or by: nsenter -t {first.pid} -m umount {shlex.quote(first.mountpoint)}"
    return MountError("umount", path, f"{here}; {daemon}", code=errno.ETIMEDOUT, hint=hint)


class _Holder(NamedTuple):
    """A process in whose mount namespace a union is mounted, and where."""

    pid: int
    mountpoint: str


def _holders(mounted: mountinfo.Mount, daemons: set[int]) -> list[_Holder]:
    """One process of each mount namespace that shows the union; of other users' only root sees any."""
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


def _open_processes(name: str, owner: int | None, stack: ExitStack) -> dict[int, int]:
    """Descriptors of the processes called `name` that are ours, root's or of `owner`, who mounted the union, since any
    process may call itself so: pidfd -> pid; `stack` closes them."""
    found = {}
    for directory in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if _name_of(directory) == name:
                pidfd = os.pidfd_open(int(directory))
                stack.callback(os.close, pidfd)
                # Looked at while the descriptor is held: then both are of one process.
                if _name_of(directory) == name and peers.is_trusted(os.stat(f"/proc/{directory}").st_uid, owner):
                    found[pidfd] = int(directory)
    return found


def _wait_for_end(pids: dict[int, int], timeout_s: float) -> dict[int, int]:
    """Wait until the processes have ended; those that have not after `timeout_s`."""
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
