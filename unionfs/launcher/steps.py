"""Setup steps that turn a root filesystem into a container's root. Each can describe and execute itself.

Steps run in the container's init, which has every capability over its namespaces, in two phases. First, while the root
is still the host's, `open_on_host` opens the host's files and mounts (HostStep only). Then, in the container's root,
`execute` or the function returned by `open_on_host` does the rest. So host paths and container paths are never resolved
in the same root, and no symlink of the container leads out of it.

Steps are values with all they need in their fields. An OSError of a step names the path that it failed on.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple, Protocol, runtime_checkable

from unionfs.launcher.errors import LaunchError
from unionfs.syscalls.mounts import (
    MNT_DETACH,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MS_BIND,
    MS_NOATIME,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_RELATIME,
    MS_STRICTATIME,
    DetachedMount,
    mount,
    new_mount,
    open_tree,
    set_attributes,
    umount2,
)
from unionfs.syscalls.namespaces import pivot_root, sethostname

_RESTRICTED: Final = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
_MS_RESTRICTED: Final = MS_NOSUID | MS_NODEV | MS_NOEXEC
_ATIMES: Final = MS_RELATIME | MS_NOATIME | MS_STRICTATIME
_TMPFS_FLAGS: Final = {
    "ro": (0, 0), "rw": (0, 0),
    "exec": (0, MS_NOEXEC), "noexec": (MS_NOEXEC, 0),
    "suid": (0, MS_NOSUID), "nosuid": (MS_NOSUID, 0), "nodev": (MS_NODEV, 0),
    "relatime": (MS_RELATIME, _ATIMES), "noatime": (MS_NOATIME, _ATIMES), "strictatime": (MS_STRICTATIME, _ATIMES),
}  # fmt: skip
"""Options of a tmpfs that are flags: the MS_* bits that each sets, and those that it clears."""
_created: Final[list[str]] = []  # see `created_mountpoints`; a process executes steps once
_SIOCGIFFLAGS: Final = 0x8913  # netdevice(7), <linux/sockios.h>
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1
_IFREQ: Final = struct.Struct("16sh22x")  # struct ifreq: name, flags, and room for the rest of the union


Action = Callable[[], None]
"""What a step does in the container's root."""


class Step(Protocol):
    """A step that runs in the container's root only."""

    def describe(self) -> str: ...

    def execute(self) -> None: ...


@runtime_checkable
class HostStep(Protocol):
    """A step that opens files or mounts in the host's root, and returns what to call in the container's root."""

    def describe(self) -> str: ...

    def open_on_host(self) -> Callable[[], None]: ...


def execute_all(steps: Iterable[Step | HostStep]) -> None:
    """Execute all steps, in order. Preconditions: in a new mount namespace, from which no mount propagates.

    Raises: LaunchError naming the step that failed. Mounts made until then vanish with the mount namespace.
    """
    run_all(open_all(steps))


def open_all(steps: Iterable[Step | HostStep]) -> list[tuple[Step | HostStep, Action]]:
    """In the host's root: open the files and mounts that the steps need of it; return the actions for `run_all`.
    Raises: LaunchError."""
    return [(step, _open(step)) for step in steps]


def run_all(actions: Iterable[tuple[Step | HostStep, Action]]) -> None:
    """In the container's root: do the rest of the steps. Raises: LaunchError naming the step that failed."""
    for step, action in actions:
        with _failures_of(step):
            action()


def _open(step: Step | HostStep) -> Callable[[], None]:
    if not isinstance(step, HostStep):
        return step.execute
    with _failures_of(step):
        return step.open_on_host()


@contextlib.contextmanager
def _failures_of(step: Step | HostStep) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LaunchError.of(f"preparing the container ({step.describe()})", error) from error


class EnterRoot(NamedTuple):
    """Make the tree at `rootfs` the root, mounted nodev, and detach the host's root."""

    rootfs: str

    def describe(self) -> str:
        return f"make {self.rootfs} the root directory"

    def open_on_host(self) -> Callable[[], None]:
        tree = open_tree(self.rootfs)
        tree.set_attributes(MOUNT_ATTR_NODEV, recursive=True)
        return lambda: self._enter(tree)

    def _enter(self, tree: DetachedMount) -> None:
        tree.attach(self.rootfs)
        os.chdir(self.rootfs)
        pivot_root(".", ".")  # pivot_root(2), NOTES: the old root is now mounted over the new one ...
        umount2(".", MNT_DETACH)  # ... and "." refers to it
        os.chdir("/")


class Proc(NamedTuple):
    """Mount proc for our pid namespace."""

    def describe(self) -> str:
        return "mount proc on /proc"

    def open_on_host(self) -> Callable[[], None]:
        try:
            proc = new_mount("proc", (), _RESTRICTED)
        except PermissionError as error:
            why = "parts of /proc are covered by other mounts, so the kernel refuses a new one (are we in a container?)"
            raise LaunchError("mounting proc", "/proc", why) from error
        return lambda: proc.attach(own_directory("/proc"))


class Sysfs(NamedTuple):
    """Mount sysfs read-only: a new one if `own`, which needs a new network namespace, else the host's."""

    own: bool

    def describe(self) -> str:
        return "mount sysfs on /sys, read-only" if self.own else "bind /sys on /sys, read-only"

    def open_on_host(self) -> Callable[[], None]:
        sysfs = self._mount()
        return lambda: sysfs.attach(own_directory("/sys"))

    def _mount(self) -> DetachedMount:
        attributes = _RESTRICTED | MOUNT_ATTR_RDONLY
        if self.own:
            with contextlib.suppress(PermissionError):  # as with proc: parts of the host's are covered by other mounts
                return new_mount("sysfs", (), attributes)
        tree = open_tree("/sys")
        tree.set_attributes(attributes, recursive=True)
        return tree


class Cgroup(NamedTuple):
    """Mount our control group and those below it, read-only. If the kernel refuses, /sys/fs/cgroup stays as it is."""

    def describe(self) -> str:
        return "mount cgroup2 on /sys/fs/cgroup, read-only, if possible"

    def open_on_host(self) -> Callable[[], None]:
        try:
            cgroup = new_mount("cgroup2", (), _RESTRICTED | MOUNT_ATTR_RDONLY)
        except OSError:
            return lambda: None
        return lambda: self._cover(cgroup)

    def _cover(self, cgroup: DetachedMount) -> None:
        if os.path.isdir("/sys/fs/cgroup"):
            cgroup.attach("/sys/fs/cgroup")
        else:
            cgroup.close()


class BindTree(NamedTuple):
    """Bind a file or directory of the host, with all mounts below it."""

    source: str
    target: str
    read_only: bool

    def describe(self) -> str:
        return f"bind {self.source} on {self.target}{', read-only' if self.read_only else ''}"

    def open_on_host(self) -> Callable[[], None]:
        tree = open_tree(self.source)
        attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | (MOUNT_ATTR_RDONLY if self.read_only else 0)
        tree.set_attributes(attributes, recursive=True)
        return lambda: attach_at(tree, self.target)


class ProvideFile(NamedTuple):
    """Copy a file of the host to `target` if that is missing or a dangling symlink."""

    source: str
    target: str

    def describe(self) -> str:
        return f"copy {self.source} to {self.target} if there is none"

    def open_on_host(self) -> Callable[[], None]:
        with open(self.source, "rb") as file:
            content = file.read()
        return lambda: self._write(content)

    def _write(self, content: bytes) -> None:
        if os.path.exists(self.target):
            return
        path = os.path.realpath(self.target)
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        with open(path, "xb") as file:
            file.write(content)


class Dev(NamedTuple):
    """Mount a small empty tmpfs on /dev."""

    def describe(self) -> str:
        return "mount tmpfs on /dev"

    def execute(self) -> None:
        mount("tmpfs", own_directory("/dev"), "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=64k")


class Tmpfs(NamedTuple):
    """Mount an empty tmpfs on `target`, nosuid and nodev, with `options` of tmpfs(5) and of `_TMPFS_FLAGS`.

    `ro` is left to MakeReadOnly: mountpoints may have to be made in it first.
    """

    target: str
    options: str

    def describe(self) -> str:
        return f"mount tmpfs on {self.target} ({self.options})"

    def execute(self) -> None:
        flags, values = MS_NOSUID | MS_NODEV, []
        for word in self.options.split(","):
            if word in _TMPFS_FLAGS:
                added, removed = _TMPFS_FLAGS[word]
                flags = flags & ~removed | added
            else:
                values.append(word)
        mount("tmpfs", directory_at(self.target), "tmpfs", flags, ",".join(values))


class Terminals(NamedTuple):
    """Mount a new devpts on /dev/pts. `tty_group`: the id map has group 5, which new terminals then belong to."""

    tty_group: bool

    def describe(self) -> str:
        return f"mount devpts on /dev/pts{', for group 5' if self.tty_group else ''}"

    def execute(self) -> None:
        options = "newinstance,ptmxmode=0666,mode=0620" + (",gid=5" if self.tty_group else "")
        mount("devpts", directory_at("/dev/pts"), "devpts", MS_NOSUID | MS_NOEXEC, options)


class MessageQueues(NamedTuple):
    """Mount the POSIX message queues of our ipc namespace (mq_overview(7))."""

    def describe(self) -> str:
        return "mount mqueue on /dev/mqueue"

    def execute(self) -> None:
        mount("mqueue", directory_at("/dev/mqueue"), "mqueue", _MS_RESTRICTED)


class HostMessageQueues(NamedTuple):
    """Bind the host's message queues, if it shows them. For a container in the host's ipc namespace."""

    def describe(self) -> str:
        return "bind /dev/mqueue on /dev/mqueue, if there is one"

    def open_on_host(self) -> Callable[[], None]:
        if not os.path.isdir("/dev/mqueue"):
            return lambda: None
        tree = open_tree("/dev/mqueue")
        tree.set_attributes(_RESTRICTED)
        return lambda: tree.attach(directory_at("/dev/mqueue"))


class Link(NamedTuple):
    """Make a symlink."""

    path: str
    target: str

    def describe(self) -> str:
        return f"link {self.path} to {self.target}"

    def execute(self) -> None:
        os.symlink(self.target, self.path)


class Mask(NamedTuple):
    """Cover a file with /dev/null, or a directory with an empty one, if `path` exists."""

    path: str

    def describe(self) -> str:
        return f"hide {self.path}"

    def execute(self) -> None:
        if os.path.isdir(self.path):
            mount("tmpfs", self.path, "tmpfs", _MS_RESTRICTED | MS_RDONLY, "size=0,mode=755")
        elif os.path.exists(self.path):
            node = open_tree("/dev/null")
            node.set_attributes(MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC)  # /dev/null keeps its mode
            node.attach(self.path)


class Freeze(NamedTuple):
    """Make a part of /proc read-only, if it exists."""

    path: str

    def describe(self) -> str:
        return f"make {self.path} read-only"

    def execute(self) -> None:
        if os.path.exists(self.path):
            mount(self.path, self.path, None, MS_BIND)
            set_attributes(self.path, MOUNT_ATTR_RDONLY | _RESTRICTED)


class FreezeMachineFiles(NamedTuple):
    """Make the files of /proc that describe the machine read-only, one by one.

    /proc/meminfo and the like have one mode and one owner in all mounts of proc: a chmod by root of a container would
    change them on the machine.
    """

    def describe(self) -> str:
        return "make the machine's files in /proc read-only"

    def execute(self) -> None:
        with os.scandir("/proc") as found:
            names = [entry.name for entry in found if not entry.name.isdigit() and not entry.is_symlink()]
        for path in (f"/proc/{name}" for name in names):
            if not os.path.ismount(path):
                tree = open_tree(path)
                tree.set_attributes(MOUNT_ATTR_RDONLY | _RESTRICTED)
                tree.attach(path)


class MakeReadOnly(NamedTuple):
    """Make the mount at `path` read-only; mounts below it stay as they are."""

    path: str

    def describe(self) -> str:
        return f"make {self.path} read-only"

    def execute(self) -> None:
        set_attributes(os.path.realpath(self.path), MOUNT_ATTR_RDONLY)


class KeepWritable(NamedTuple):
    """Make a directory a mount of its own, which stays writable when the root is made read-only. It is found in the
    container's root: the container may have replaced it by a symlink, which must not lead to the host's files."""

    path: str

    def describe(self) -> str:
        return f"keep {self.path} writable"

    def execute(self) -> None:
        path = directory_at(self.path)
        open_tree(path).attach(path)


class Hostname(NamedTuple):
    """Set the hostname of our UTS namespace."""

    name: str

    def describe(self) -> str:
        return f"set the hostname to {self.name}"

    def execute(self) -> None:
        sethostname(self.name)


class Loopback(NamedTuple):
    """Bring up the interface `lo`, which is down in a new network namespace (netdevice(7))."""

    def describe(self) -> str:
        return "bring up the loopback interface"

    def execute(self) -> None:
        import fcntl
        import socket

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            _, flags = _IFREQ.unpack(fcntl.ioctl(any_socket, _SIOCGIFFLAGS, _IFREQ.pack(b"lo", 0)))
            fcntl.ioctl(any_socket, _SIOCSIFFLAGS, _IFREQ.pack(b"lo", flags | _IFF_UP))


class Directory(NamedTuple):
    """Make a directory if it is missing."""

    path: str

    def describe(self) -> str:
        return f"make the directory {self.path} if it is missing"

    def execute(self) -> None:
        before = len(_created)
        directory_at(self.path)
        del _created[before:]  # unlike a mountpoint, it is a change of the container


def created_mountpoints() -> tuple[str, ...]:
    """Return the files and directories that the steps of this process created as mountpoints, with their parents."""
    return tuple(_created)


def _record_missing(path: str) -> None:
    """Record `path` and its parents, as far as they are missing, as mountpoints that are about to be created."""
    missing = []
    while path != "/" and not os.path.lexists(path):
        missing.append(path)
        path = os.path.dirname(path)
    _created.extend(reversed(missing))


def attach_at(tree: DetachedMount, target: str) -> None:
    """Attach a mount at `target`, creating the file or directory there if it is missing."""
    tree.attach(directory_at(target) if stat.S_ISDIR(os.fstat(tree.fd).st_mode) else file_at(target))


def own_directory(path: str) -> str:
    """Return the directory at `path`, made if it is missing. Refuses a symlink, which would redirect our mount."""
    if os.path.islink(path):
        raise OSError(errno.ENOTDIR, "a symlink, where the root filesystem must have a directory", path)
    return directory_at(path)


def directory_at(path: str) -> str:
    """Return the directory that `path` resolves to through symlinks, made with its parents if it is missing."""
    resolved = os.path.realpath(path)
    _record_missing(resolved)
    try:
        os.makedirs(resolved, 0o755)
    except FileExistsError:
        if not os.path.isdir(resolved):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from None
    return resolved


def file_at(path: str) -> str:
    """Return the file of any type that `path` resolves to through symlinks, made empty if it is missing."""
    resolved = os.path.realpath(path)
    if not os.path.exists(resolved):
        directory_at(os.path.dirname(resolved))
        _record_missing(resolved)
        os.close(os.open(resolved, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
    return resolved
