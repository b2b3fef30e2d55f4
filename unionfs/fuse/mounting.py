"""Obtain a mounted /dev/fuse descriptor, and unmount again.

Knows mount(2), fusermount3(1) and inherited descriptors. Does not know the process that serves the mount.

Root, of the machine or of a user namespace, calls mount(2); other users run the setuid helper fusermount3, which passes
the descriptor back through the socket named by _FUSE_COMMFD. A mountpoint of the form /dev/fd/N is a descriptor that
the parent process has mounted already. Requests that arrive before the daemon serves them wait in the kernel.

The mounted tree itself is never accessed here: the process that serves it would wait for itself.
"""

from __future__ import annotations

import errno
import os
import re
import select
import signal
import stat
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from unionfs.syscalls import mountinfo
from unionfs.syscalls.mounts import (
    MNT_DETACH,
    MS_NOATIME,
    MS_NODEV,
    MS_NODIRATIME,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_REMOUNT,
    UMOUNT_NOFOLLOW,
    mount,
    umount2,
)

DEVICE: Final = "/dev/fuse"
SUBTYPE: Final = "unionfs"
FSTYPE: Final = f"fuse.{SUBTYPE}"
HELPER: Final = "fusermount3"

_INHERITED = re.compile(r"/dev/fd/([0-9]+)")
_FUSE_DEVICE_NUMBER: Final = (10, 229)  # admin-guide/devices.txt
_NOT_ALLOWED: Final = (errno.EPERM, errno.EACCES)


_READ_AHEAD_KB: Final = 1024


class MountError(OSError):
    """Mounting or unmounting failed. `str()` is `WHAT failed: PATH: WHY`; `hint` says what to do, or is empty."""

    def __init__(self, what: str, path: str, why: str, *, code: int = 0, hint: str = "") -> None:
        super().__init__(code, why, path)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what} failed: {self.filename}: {self.strerror}"


class MountOptions(NamedTuple):
    """The options of mount(2) for the union. Immutable."""

    source: str = SUBTYPE  # shown as the device by df and mount
    read_only: bool = False
    allow_other: bool | None = None  # whether other users may access it; None: yes if root mounts, else no
    suid: bool = True  # honour set-id bits; fusermount3 never does
    dev: bool = False  # honour device files; fusermount3 never does
    exec: bool = True
    atime: bool = True  # the kernel's default for access times (relatime)
    diratime: bool = True


def inherited_fd(mountpoint: str) -> int | None:
    """Return N if `mountpoint` is /dev/fd/N, a descriptor mounted by another process; else None."""
    match = _INHERITED.fullmatch(mountpoint)
    return int(match[1]) if match else None


def resolve_mountpoint(path: str) -> str:
    """Return `path` absolute and free of symlinks, without accessing a filesystem mounted there."""
    parent, name = os.path.split(os.path.abspath(path))
    resolved = os.path.join(os.path.realpath(parent), name)
    if mountinfo.topmost_at(resolved) is None and os.path.islink(resolved):
        return os.path.realpath(resolved)
    return resolved


def check_mountpoint(path: str, *, may_cover_union: bool = False) -> str:
    """Check that a union can be mounted at `path`, and return the resolved mountpoint.

    Raises: MountError if it is missing, not a directory, or (unless `may_cover_union`) shows a union already.
    """
    inherited = inherited_fd(path)
    if inherited is not None:
        return path
    mountpoint = resolve_mountpoint(path)
    there = mountinfo.topmost_at(mountpoint)
    if there is not None and there.fstype == FSTYPE and not may_cover_union:
        hint = f"unmount it first: unionfs umount {path}"
        raise MountError("mount", path, "a union is mounted there already", code=errno.EBUSY, hint=hint)
    try:
        mode = os.stat(mountpoint).st_mode
    except OSError as error:
        raise _bad_mountpoint(path, error) from error
    if not stat.S_ISDIR(mode):
        raise MountError("mount", path, "the mountpoint is not a directory", code=errno.ENOTDIR)
    return mountpoint


def mount_union(mountpoint: str, options: MountOptions) -> int:
    """Mount at `mountpoint`, as check_mountpoint returned it, and return the descriptor on which its requests arrive.

    Raises: MountError; then nothing is mounted.
    """
    inherited = inherited_fd(mountpoint)
    if inherited is not None:
        return _check_inherited(inherited, mountpoint)
    if os.geteuid() == 0:
        return _mount_directly(mountpoint, options)
    return _mount_by_helper(mountpoint, options)


def unmount(mountpoint: str, *, lazy: bool = False) -> None:
    """Unmount the topmost mount at the resolved path `mountpoint`; `lazy` detaches it even while it is in use.

    Raises: MountError with EBUSY if it is in use and not `lazy`.
    """
    if os.geteuid() != 0:
        _unmount_by_helper(mountpoint, lazy=lazy)
        return
    try:
        umount2(mountpoint, UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0))
    except OSError as error:
        raise MountError("umount", mountpoint, _unmount_reason(error), code=error.errno or 0) from error


def remount(mountpoint: str, options: MountOptions) -> None:
    """Change the options of a mounted union: read-only, and whether set-id bits, devices and programs are honoured
    (mount(2), MS_REMOUNT). Raises MountError; EBUSY while files are open for writing."""
    there = mountinfo.topmost_at(mountpoint)
    if there is None or there.fstype != FSTYPE:
        why = "nothing is mounted there" if there is None else f"not a union but {there.fstype}"
        raise MountError("remount", mountpoint, why, code=errno.EINVAL)
    try:
        mount(None, mountpoint, None, MS_REMOUNT | _flags(options))
    except OSError as error:
        hint = {errno.EPERM: "only root may change a mount", errno.EBUSY: "files are open for writing"}
        why = os.strerror(error.errno or 0)
        raise MountError(
            "remount", mountpoint, why, code=error.errno or 0, hint=hint.get(error.errno or 0, "")
        ) from error


def connection_at(mountpoint: str) -> int | None:
    """Return the number of the FUSE connection at `mountpoint`, as in /sys/fs/fuse/connections; None: no FUSE there."""
    there = mountinfo.topmost_at(mountpoint)
    return there.minor if there is not None and there.fstype.split(".")[0] in ("fuse", "fuseblk") else None


def union_at(mountpoint: str) -> mountinfo.Mount | None:
    """Return the union at `mountpoint`; its `minor` is the number of its FUSE connection. None: no union there."""
    there = mountinfo.topmost_at(mountpoint)
    return there if there is not None and there.fstype == FSTYPE else None


def has_ended(fd: int) -> bool:
    """Return whether the mount of a /dev/fuse descriptor has ended: poll(2) then reports an error (fuse_dev_poll in
    Linux's fs/fuse/dev.c). Another mount may have the connection's number from then on."""
    poll = select.poll()
    poll.register(fd, 0)
    return bool(poll.poll(0))


def set_read_ahead(connection: int) -> None:
    """Set the mount's read-ahead to 1 MiB, the size of the largest request; the kernel's default is an eighth of that.
    Errors are ignored: only root may write the setting (/sys/class/bdi)."""
    with suppress(OSError), open(f"/sys/class/bdi/0:{connection}/read_ahead_kb", "w") as setting:
        setting.write(str(_READ_AHEAD_KB))


def process_name(connection: int) -> str:
    """Return the name in /proc/PID/comm (at most 15 bytes) of the process that serves a FUSE connection."""
    return f"{SUBTYPE}:{connection}"


def keeper_name(connection: int) -> str:
    """Return the name in /proc/PID/comm of the keeper of a FUSE connection (fuse.keeper)."""
    return f"{SUBTYPE}-k:{connection}"[:15]


def _bad_mountpoint(path: str, error: OSError) -> MountError:
    code = error.errno or 0
    if code == errno.ENOENT:
        return MountError("mount", path, "the mountpoint does not exist", code=code, hint=f"make it: mkdir -p {path}")
    if code == errno.ENOTCONN:
        hint = f"unmount it: unionfs umount {path}"
        return MountError("mount", path, "a FUSE mount whose daemon has died is there", code=code, hint=hint)
    return MountError("mount", path, error.strerror or str(error), code=code)


def _check_inherited(fd: int, mountpoint: str) -> int:
    try:
        status = os.fstat(fd)
    except OSError as error:
        why = "no such descriptor was inherited"
        raise MountError("mount", mountpoint, why, code=error.errno or 0) from error
    if not _is_fuse(status):
        raise MountError("mount", mountpoint, f"the descriptor is not an open {DEVICE}", code=errno.EINVAL)
    os.set_inheritable(fd, False)
    return fd


# -- as root, by mount(2) --


def _mount_directly(mountpoint: str, options: MountOptions) -> int:
    fd = _open_device()
    # Documentation/filesystems/fuse.rst, "Mount options"; the root of a union is always a directory.
    data = f"fd={fd},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()},default_permissions"
    if options.allow_other is not False:
        data += ",allow_other"
    try:
        mount(options.source, mountpoint, FSTYPE, _flags(options), data)
    except OSError as error:
        os.close(fd)
        raise _mount_refused(mountpoint, error) from error
    return fd


def _flags(options: MountOptions) -> int:
    flags = 0
    if options.read_only:
        flags |= MS_RDONLY
    if not options.suid:
        flags |= MS_NOSUID
    if not options.dev:
        flags |= MS_NODEV
    if not options.exec:
        flags |= MS_NOEXEC
    if not options.atime:
        flags |= MS_NOATIME
    if not options.diratime:
        flags |= MS_NODIRATIME
    return flags


def _open_device() -> int:
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        why = error.strerror or str(error)
        hint = ""
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            why = "the device does not exist"
            hint = "load the kernel module, as root of the machine: modprobe fuse"
        elif error.errno in _NOT_ALLOWED:
            hint = f"as root of the machine: chmod 666 {DEVICE}"
        raise MountError("opening", DEVICE, why, code=error.errno or 0, hint=hint) from error
    if not _is_fuse(os.fstat(fd)):
        os.close(fd)
        hint = f"as root of the machine: rm {DEVICE}; mknod -m 666 {DEVICE} c 10 229"
        raise MountError("opening", DEVICE, "it is not the device of FUSE", code=errno.ENODEV, hint=hint)
    return fd


def _is_fuse(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and (os.major(status.st_rdev), os.minor(status.st_rdev)) == _FUSE_DEVICE_NUMBER


def _mount_refused(mountpoint: str, error: OSError) -> MountError:
    why = error.strerror or str(error)
    hint = ""
    if error.errno in _NOT_ALLOWED:
        hint = (
            "root may mount only with CAP_SYS_ADMIN in the user namespace that owns the mount namespace; "
            "a namespace of one's own has it: unshare --map-root-user --mount"
        )
    elif error.errno == errno.ENODEV:
        why = "the kernel has no FUSE"
        hint = "load the kernel module, as root of the machine: modprobe fuse"
    return MountError("mount", mountpoint, why, code=error.errno or 0, hint=hint)


def _unmount_reason(error: OSError) -> str:
    if error.errno == errno.EINVAL:
        return "nothing is mounted there, or it belongs to another user namespace"
    return error.strerror or str(error)


# -- as another user, by fusermount3 --


def _mount_by_helper(mountpoint: str, options: MountOptions) -> int:
    import socket

    words = [f"fsname={_escape(options.source)}", f"subtype={SUBTYPE}", "default_permissions"]
    words.append("ro" if options.read_only else "rw")
    if not options.exec:
        words.append("noexec")
    if not options.atime:
        words.append("noatime")
    if not options.diratime:
        words.append("nodiratime")
    if options.allow_other:
        words.append("allow_other")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        theirs.set_inheritable(True)
        environment = {"_FUSE_COMMFD": str(theirs.fileno())}
        complaint = _helper(["-o", ",".join(words), "--", mountpoint], environment, "mount", mountpoint)
        theirs.close()
        fds = [] if complaint else socket.recv_fds(ours, 1, 1)[1]
    if not fds:
        why = complaint or f"{HELPER} handed over no descriptor"
        raise MountError("mount", mountpoint, why, code=_code_in(why), hint=_helper_hint(why))
    os.set_inheritable(fds[0], False)
    return fds[0]


def _unmount_by_helper(mountpoint: str, *, lazy: bool) -> None:
    complaint = _helper(["-u", *(["-z"] if lazy else []), "--", mountpoint], {}, "umount", mountpoint)
    if complaint:
        raise MountError("umount", mountpoint, complaint, code=_code_in(complaint))


_HELD_BACK: Final = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT)
"""Signals that terminals and supervisors send to a whole process group. One that ended fusermount3 between its mount(2)
and handing over the descriptor would leave a dead mount; our own process acts on them afterwards."""


def _helper(arguments: Sequence[str], environment: dict[str, str], what: str, path: str) -> str:
    """Run fusermount3. Returns its error message; empty if it succeeded."""
    read_fd, write_fd = os.pipe()
    try:
        pid = os.posix_spawnp(
            HELPER,
            [HELPER, *arguments],
            {**os.environ, "LC_ALL": "C", **environment},
            file_actions=[(os.POSIX_SPAWN_DUP2, write_fd, 2)],
            setsigmask=_HELD_BACK,
        )
    except OSError as error:
        os.close(read_fd)
        hint = "install the package fuse3, or mount in a user namespace: unshare --map-root-user --mount"
        why = f"{HELPER} cannot be run: {error.strerror}"
        raise MountError(what, path, why, code=error.errno or 0, hint=hint) from error
    finally:
        os.close(write_fd)
    with open(read_fd, encoding="utf-8", errors="replace") as pipe:
        said = pipe.read()
    try:
        failed = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0
    except ChildProcessError:
        failed = bool(said)  # SIGCHLD is ignored (inherited), so there is no exit status
    lines = [line.removeprefix(f"{HELPER}: ").strip() for line in said.splitlines()]
    return ("; ".join(filter(None, lines)) or f"{HELPER} failed") if failed else ""


def _helper_hint(complaint: str) -> str:
    if "user_allow_other" in complaint:
        return "as root of the machine, add a line user_allow_other to /etc/fuse.conf"
    if "no write access" in complaint:
        return "an ordinary user may mount only on a directory that it owns"
    if "device not found" in complaint or "No such file" in complaint:
        return "as root of the machine: modprobe fuse"
    if "Operation not permitted" in complaint:
        return f"{HELPER} must be set-user-id root, as the package fuse3 installs it; or mount in a user namespace"
    if DEVICE in complaint and "Permission denied" in complaint:
        return f"as root of the machine: chmod 666 {DEVICE}"
    return ""


def _code_in(complaint: str) -> int:
    """Return the errno whose text fusermount3 printed; EIO if it printed none."""
    for code in (errno.EBUSY, errno.EPERM, errno.EACCES, errno.ENOENT, errno.EINVAL, errno.ENODEV):
        if os.strerror(code) in complaint:
            return code
    return errno.EIO


def _escape(value: str) -> str:
    """Escape `value` for a comma-separated option list (fuse(8): backslash protects commas)."""
    return value.replace("\\", "\\\\").replace(",", "\\,")
