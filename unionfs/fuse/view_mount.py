"""Mount a read-only union as a view of a live writable one that has the same lowers: a bind mount, and no new daemon.

The view is found by its name (fuse.view_name) in the root directories of the unions that are mounted in this mount
namespace; of several, the view of the last used union is taken (fuse.view_offer). View and union are on one
filesystem (st_dev), so programs that compare them can skip equal files (core.view). If a view is not possible, an
ordinary mount gives the same result, only slower.

The mounts are accessed in a child process, which is killed if a daemon does not answer in time.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import stat
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from threading import Thread
from time import monotonic
from typing import Final

from unionfs.core.attrs import VIEW_MARK
from unionfs.core.options import Options
from unionfs.fuse import mounting
from unionfs.fuse.mounting import FSTYPE, MountOptions
from unionfs.fuse.options import ServeOptions
from unionfs.fuse.view_name import ASKED, PREFIX, is_view, view_name
from unionfs.syscalls import mountinfo, mounts

_PATIENCE_MS: Final = 2000
"""Milliseconds that the daemons of all unions together may take to answer: a lookup takes less than one."""

_ANSWER_S: Final = 0.5
"""Seconds that each of several daemons may take to tell when its union was last asked for. A stopped daemon costs this
time; the view of another union is still found."""

_NO_ANSWER: Final = 4
_NONE: Final = "no union that is mounted here has the same lowers and options"
_REASONS: Final = {
    1: _NONE,
    2: "binding a view to a mountpoint needs CAP_SYS_ADMIN over the mount namespace, and Linux 5.12",
    3: "looking for a union with the same lowers failed",
}
"""By the exit status of the child process; 0: mounted."""


def mount_view(mountpoint: str, union: Options, serve: ServeOptions, mount: MountOptions) -> str:
    """Mount the view at `mountpoint`. Returns "" if that is done, else the reason why an ordinary mount is needed."""
    if mounting.inherited_fd(mountpoint) is not None:
        return "another program has mounted it"
    if os.geteuid() != 0:
        return "only root, also of a user namespace, can mount a view"
    try:
        with open("/proc/self/mountinfo", "rb") as listing:
            if FSTYPE.encode() not in listing.read():
                return _NONE
        before = mountinfo.mounts()
        candidates = list(_unions(before, mount.source))
        if not candidates:
            return _NONE
        name = os.fsdecode(_name(union, serve, mount))
        target = mounting.resolve_mountpoint(mountpoint)
    except OSError as error:
        return f"{_REASONS[3]}: {error.strerror}"
    pid = os.fork()
    if pid == 0:
        status = 3
        try:
            status = _mount_latest(candidates, name, target, mount)
        finally:
            os._exit(status)
    reason = _outcome(pid)
    return "" if not reason or _has_view(target, before) else reason


def _unions(mounted: list[mountinfo.Mount], source: str) -> Iterator[mountinfo.Mount]:
    """List the writable unions of root with the device name `source` that are mounted and not covered by another mount,
    the latest first. All of them are asked, which keeps each busy for a moment: umount(2) fails then."""
    covered: set[str] = set()
    for there in reversed(mounted):
        is_union = there.fstype == FSTYPE and there.root == "/" and there.user_id == 0
        may_have_it = there.source == source and "rw" in there.options.split(",")
        if is_union and may_have_it and there.mountpoint not in covered:
            yield there
        covered.add(there.mountpoint)


def _name(union: Options, serve: ServeOptions, mount: MountOptions) -> bytes:
    with ExitStack() as stack:
        fds = [os.open(lower, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for lower in union.lowers]
        for fd in fds:
            stack.callback(os.close, fd)
        return view_name(fds, union, serve, mount)


def _mount_latest(candidates: list[mountinfo.Mount], name: str, target: str, mount: MountOptions) -> int:
    """In the child process: mount the view of the union that was asked for last. Returns the exit status."""
    asked_ns = _ask(candidates, name) if len(candidates) > 1 else dict.fromkeys(candidates, 0)
    having = [there for there in candidates if asked_ns.get(there, -1) >= 0]
    for there in sorted(having, key=asked_ns.__getitem__, reverse=True):
        try:
            view = mounts.open_tree(os.path.join(there.mountpoint, name), recursive=False)
        except OSError as error:
            if error.errno in (errno.EPERM, errno.ENOSYS):
                return 2
            continue  # ENOENT: another union; or it was unmounted just now
        try:
            if not _is_root_of_view(view.fd, there):
                continue
            view.replace_attributes(_attributes(mount))
        except OSError:
            return 2
        view.attach(target)
        return 0
    return 1 if len(asked_ns) == len(candidates) else _NO_ANSWER


def _ask(unions: list[mountinfo.Mount], name: str) -> dict[mountinfo.Mount, int]:
    """Return when each union was last asked for, as `_asked_ns` does; those that do not answer in time are left out."""
    found: dict[mountinfo.Mount, int] = {}
    threads = [Thread(target=_asked_ns, args=(there, name, found), daemon=True) for there in unions]
    deadline = monotonic() + _ANSWER_S
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0, deadline - monotonic()))
    return found.copy()


def _asked_ns(there: mountinfo.Mount, name: str, found: dict[mountinfo.Mount, int]) -> None:
    """Enter when a union was last asked for, if it has the view `name`; -1 if it does not have it; 0 if that is unknown
    (a union without extended attributes)."""
    try:
        found[there] = int(os.getxattr(there.mountpoint, ASKED + os.fsencode(name).removeprefix(PREFIX)))
    except OSError as error:
        found[there] = 0 if error.errno == errno.EOPNOTSUPP else -1
    except ValueError:
        found[there] = -1


def _is_root_of_view(fd: int, there: mountinfo.Mount) -> bool:
    """Whether a directory found under a view's name is the view's root: any user may give a directory that name, but
    not choose its inode number."""
    found, root = os.fstat(fd), os.stat(there.mountpoint)
    same = os.minor(found.st_dev) == there.minor and found.st_dev == root.st_dev
    return same and stat.S_ISDIR(found.st_mode) and found.st_ino ^ root.st_ino == VIEW_MARK


def _attributes(mount: MountOptions) -> int:
    """Return the MOUNT_ATTR_* that mean what the options mean for mount(2)."""
    wanted = 0
    for is_set, attribute in (
        (mount.read_only, mounts.MOUNT_ATTR_RDONLY),
        (not mount.suid, mounts.MOUNT_ATTR_NOSUID),
        (not mount.dev, mounts.MOUNT_ATTR_NODEV),
        (not mount.exec, mounts.MOUNT_ATTR_NOEXEC),
        (not mount.atime, mounts.MOUNT_ATTR_NOATIME),
        (not mount.diratime, mounts.MOUNT_ATTR_NODIRATIME),
    ):
        wanted |= attribute if is_set else 0
    return wanted


def _has_view(target: str, before: list[mountinfo.Mount]) -> bool:
    """Whether a view is mounted at `target` that was not there before: the child process may have been killed after it
    had mounted it."""
    there = mountinfo.topmost_at(target)
    return there is not None and is_view(there) and there.mount_id not in {mount.mount_id for mount in before}


def _outcome(pid: int) -> str:
    """Wait for the child process. Returns "" if it has mounted the view, as far as is known, or why it has not."""
    pidfd = os.pidfd_open(pid)
    try:
        if not select.select([pidfd], [], [], _PATIENCE_MS / 1000)[0]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:  # SIGCHLD is ignored (inherited), so there is no exit status
        status = 3
    finally:
        os.close(pidfd)
    if status == 0:
        return ""
    return _REASONS.get(status, "a daemon of a union that is mounted here does not answer")
