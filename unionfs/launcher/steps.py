"""The small things that make a root filesystem into a container's root: each can say what it does, and do it.

A step runs in the container's init, which has its namespaces and every capability over them. There are two moments:
`reach`, for the steps that have it, in the host's view, where it opens what the step brings in; and `execute`, when the
container's root is already ours. So a path of the host and a path of the container are never resolved in the same
place, and no symlink of the container leads out of it.

Steps are values; what they need is in their fields. An OSError of a step names the path it was about.
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
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    DetachedMount,
    mount,
    new_mount,
    open_tree,
    set_attributes,
    umount2,
)
from unionfs.syscalls.namespaces import pivot_root, sethostname

_HARMLESS: Final = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
_MS_HARMLESS: Final = MS_NOSUID | MS_NODEV | MS_NOEXEC
_made: Final[list[str]] = []  # see `made`; steps are carried out once in the life of a process
_SIOCGIFFLAGS: Final = 0x8913  # netdevice(7), <linux/sockios.h>
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1
_MAKING_PLACE: Final = "/dev"  # of the host's view in our mount namespace; nothing propagates from it
_IFREQ: Final = struct.Struct("16sh22x")  # struct ifreq: name, flags, and room for the rest of the union


class Step(Protocol):
    """Something to be done inside the container's root."""

    def describe(self) -> str: ...

    def execute(self) -> None: ...


@runtime_checkable
class FromHost(Protocol):
    """Something of the host's to be brought in: `reach` opens it there and returns what remains to be done inside."""

    def describe(self) -> str: ...

    def reach(self) -> Callable[[], None]: ...


def carry_out(steps: Iterable[Step | FromHost]) -> None:
    """Do all steps, in order. Preconditions: in a mount namespace of our own, from which nothing propagates.

    Raises: LaunchError naming the step that failed. What was mounted until then goes with the mount namespace.
    """
    actions = [(step, _reach(step)) for step in steps]
    for step, action in actions:
        with _failures_of(step):
            action()


def _reach(step: Step | FromHost) -> Callable[[], None]:
    if not isinstance(step, FromHost):
        return step.execute
    with _failures_of(step):
        return step.reach()


@contextlib.contextmanager
def _failures_of(step: Step | FromHost) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LaunchError.of(f"preparing the container ({step.describe()})", error) from error


class EnterRoot(NamedTuple):
    """Make the tree at `rootfs` the root, and drop the host's. Device nodes in it have no effect."""

    rootfs: str

    def describe(self) -> str:
        return f"make {self.rootfs} the root directory"

    def reach(self) -> Callable[[], None]:
        tree = open_tree(self.rootfs)
        tree.set_attributes(MOUNT_ATTR_NODEV, recursive=True)
        return lambda: self._enter(tree)

    def _enter(self, tree: DetachedMount) -> None:
        tree.attach(self.rootfs)
        os.chdir(self.rootfs)
        pivot_root(".", ".")  # pivot_root(2), NOTES: the old root is now mounted over the new one ...
        umount2(".", MNT_DETACH)  # ... and is what "." means here
        os.chdir("/")


class Proc(NamedTuple):
    """The process table of our pid namespace."""

    def describe(self) -> str:
        return "mount proc on /proc"

    def reach(self) -> Callable[[], None]:
        try:
            proc = new_mount("proc", (), _HARMLESS)
        except PermissionError as error:
            why = (
                "the /proc of this machine is partly hidden, so the kernel gives out no other (are we in a container?)"
            )
            raise LaunchError("mounting proc", "/proc", why) from error
        return lambda: proc.attach(_own_directory("/proc"))


class Sysfs(NamedTuple):
    """The devices of the machine, read-only. A sysfs of our own needs a network namespace of our own."""

    own: bool

    def describe(self) -> str:
        return "mount sysfs on /sys, read-only" if self.own else "bind /sys on /sys, read-only"

    def reach(self) -> Callable[[], None]:
        sysfs = self._mount()
        return lambda: sysfs.attach(_own_directory("/sys"))

    def _mount(self) -> DetachedMount:
        attributes = _HARMLESS | MOUNT_ATTR_RDONLY
        if self.own:
            with contextlib.suppress(PermissionError):  # as with proc: something is mounted over parts of the host's
                return new_mount("sysfs", (), attributes)
        tree = open_tree("/sys")
        tree.set_attributes(attributes, recursive=True)
        return tree


class Cgroup(NamedTuple):
    """The control groups from ours downwards, read-only. Where they cannot be had, /sys/fs/cgroup stays as it is."""

    def describe(self) -> str:
        return "mount cgroup2 on /sys/fs/cgroup, read-only, if possible"

    def reach(self) -> Callable[[], None]:
        try:
            cgroup = new_mount("cgroup2", (), _HARMLESS | MOUNT_ATTR_RDONLY)
        except OSError:
            return lambda: None
        return lambda: self._cover(cgroup)

    def _cover(self, cgroup: DetachedMount) -> None:
        if os.path.isdir("/sys/fs/cgroup"):
            cgroup.attach("/sys/fs/cgroup")
        else:
            cgroup.close()


class BindTree(NamedTuple):
    """A file or directory of the host, with what is mounted below it."""

    source: str
    target: str
    read_only: bool

    def describe(self) -> str:
        return f"bind {self.source} on {self.target}{', read-only' if self.read_only else ''}"

    def reach(self) -> Callable[[], None]:
        tree = open_tree(self.source)
        attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | (MOUNT_ATTR_RDONLY if self.read_only else 0)
        tree.set_attributes(attributes, recursive=True)
        return lambda: _attach_made(tree, self.target)


class Device(NamedTuple):
    """A device node of the host: nobody but the real root can make one that works."""

    path: str

    def describe(self) -> str:
        return f"bind {self.path} on {self.path}"

    def reach(self) -> Callable[[], None]:
        node = open_tree(self.path)
        node.set_attributes(MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC)
        return lambda: _attach_made(node, self.path)


class OwnDevices(NamedTuple):
    """Device nodes of the container's own: root's changes to a bound node would be changes of this machine's.

    They are made in a tmpfs that is mounted nowhere afterwards, and bound one by one: /dev itself honours no devices,
    or a container with CAP_MKNOD could make any. Where mknod(2) is refused (root within another container), the host's
    are bound read-only: they can be read and written, but not be given another mode, owner or time.
    """

    paths: tuple[str, ...]

    def describe(self) -> str:
        return f"make the device nodes {', '.join(self.paths)}"

    def reach(self) -> Callable[[], None]:
        bound = [open_tree(path) for path in self.paths]
        mount("tmpfs", _MAKING_PLACE, "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=700,size=64k")
        try:
            nodes = [self._own(os.path.basename(path), node) for path, node in zip(self.paths, bound, strict=True)]
        finally:
            umount2(_MAKING_PLACE, MNT_DETACH)
        return lambda: self._attach(nodes)

    def _own(self, name: str, bound: DetachedMount) -> DetachedMount:
        """A mount of a new node like the one that is bound, else that one, read-only."""
        there, node = os.fstat(bound.fd), os.path.join(_MAKING_PLACE, name)
        attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC
        try:
            os.mknod(node, there.st_mode, there.st_rdev)
        except PermissionError:
            bound.set_attributes(attributes | MOUNT_ATTR_RDONLY)
            return bound
        bound.close()
        os.chown(node, there.st_uid, there.st_gid)
        os.chmod(node, stat.S_IMODE(there.st_mode))
        own = open_tree(node)
        own.set_attributes(attributes)
        return own

    def _attach(self, nodes: list[DetachedMount]) -> None:
        for path, node in zip(self.paths, nodes, strict=True):
            _attach_made(node, path)


class ProvideFile(NamedTuple):
    """A copy of a file of the host, where the container has none: `target` is missing, or a symlink to nothing."""

    source: str
    target: str

    def describe(self) -> str:
        return f"copy {self.source} to {self.target} if there is none"

    def reach(self) -> Callable[[], None]:
        with open(self.source, "rb") as file:
            content = file.read()
        return lambda: self._write(content)

    def _write(self, content: bytes) -> None:
        if os.path.exists(self.target):
            return
        place = os.path.realpath(self.target)
        os.makedirs(os.path.dirname(place), 0o755, exist_ok=True)
        with open(place, "xb") as file:
            file.write(content)


class Dev(NamedTuple):
    """The directory of devices: empty, in memory, and small."""

    def describe(self) -> str:
        return "mount tmpfs on /dev"

    def execute(self) -> None:
        mount("tmpfs", _own_directory("/dev"), "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=64k")


class Tmpfs(NamedTuple):
    """An empty filesystem in memory. `options` are those of tmpfs(5)."""

    target: str
    options: str
    noexec: bool = False

    def describe(self) -> str:
        return f"mount tmpfs on {self.target} ({self.options})"

    def execute(self) -> None:
        flags = MS_NOSUID | MS_NODEV | (MS_NOEXEC if self.noexec else 0)
        mount("tmpfs", _directory_at(self.target), "tmpfs", flags, self.options)


class Terminals(NamedTuple):
    """Pseudo terminals of our own (devpts). `tty_group`: the container has group 5, to which they belong."""

    tty_group: bool

    def describe(self) -> str:
        return f"mount devpts on /dev/pts{', for group 5' if self.tty_group else ''}"

    def execute(self) -> None:
        options = "newinstance,ptmxmode=0666,mode=0620" + (",gid=5" if self.tty_group else "")
        mount("devpts", _directory_at("/dev/pts"), "devpts", MS_NOSUID | MS_NOEXEC, options)


class MessageQueues(NamedTuple):
    """The POSIX message queues of our ipc namespace (mq_overview(7))."""

    def describe(self) -> str:
        return "mount mqueue on /dev/mqueue"

    def execute(self) -> None:
        mount("mqueue", _directory_at("/dev/mqueue"), "mqueue", _MS_HARMLESS)


class Link(NamedTuple):
    """A symlink."""

    path: str
    target: str

    def describe(self) -> str:
        return f"link {self.path} to {self.target}"

    def execute(self) -> None:
        os.symlink(self.target, self.path)


class Mask(NamedTuple):
    """Hide a file behind /dev/null, or a directory behind an empty one. What does not exist needs no hiding."""

    path: str

    def describe(self) -> str:
        return f"hide {self.path}"

    def execute(self) -> None:
        if os.path.isdir(self.path):
            mount("tmpfs", self.path, "tmpfs", _MS_HARMLESS | MS_RDONLY, "size=0,mode=755")
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
            set_attributes(self.path, MOUNT_ATTR_RDONLY | _HARMLESS)


class FreezeMachineFiles(NamedTuple):
    """Make what /proc tells of the machine read-only, file by file.

    The kernel keeps one mode and one owner for /proc/meminfo and its like, whichever procfs they are changed through:
    root's chmod in a container would be this machine's.
    """

    def describe(self) -> str:
        return "make the files of /proc that are the machine's read-only"

    def execute(self) -> None:
        with os.scandir("/proc") as found:
            names = [entry.name for entry in found if not entry.name.isdigit() and not entry.is_symlink()]
        for path in (f"/proc/{name}" for name in names):
            if not os.path.ismount(path):
                tree = open_tree(path)
                tree.set_attributes(MOUNT_ATTR_RDONLY | _HARMLESS)
                tree.attach(path)


class FreezeRoot(NamedTuple):
    """Make the root filesystem read-only; what is mounted in it stays as it is."""

    def describe(self) -> str:
        return "make / read-only"

    def execute(self) -> None:
        set_attributes("/", MOUNT_ATTR_RDONLY)


class Hostname(NamedTuple):
    """The name of the machine, as the container sees it."""

    name: str

    def describe(self) -> str:
        return f"set the hostname to {self.name}"

    def execute(self) -> None:
        sethostname(self.name)


class Loopback(NamedTuple):
    """Bring up `lo`, which a new network namespace has, but down (netdevice(7))."""

    def describe(self) -> str:
        return "bring up the loopback interface"

    def execute(self) -> None:
        import fcntl
        import socket

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            _, flags = _IFREQ.unpack(fcntl.ioctl(any_socket, _SIOCGIFFLAGS, _IFREQ.pack(b"lo", 0)))
            fcntl.ioctl(any_socket, _SIOCSIFFLAGS, _IFREQ.pack(b"lo", flags | _IFF_UP))


class Directory(NamedTuple):
    """A directory that must exist."""

    path: str

    def describe(self) -> str:
        return f"make the directory {self.path} if it is missing"

    def execute(self) -> None:
        before = len(_made)
        _directory_at(self.path)
        del _made[before:]  # it is part of the container


def made() -> tuple[str, ...]:
    """What steps of this process had to make in the container's root so that something could be mounted there."""
    return tuple(_made)


def _note(place: str) -> None:
    """Note that `place` will be made, with the directories on the way to it that are missing."""
    missing = []
    while place != "/" and not os.path.lexists(place):
        missing.append(place)
        place = os.path.dirname(place)
    _made.extend(reversed(missing))


def _attach_made(tree: DetachedMount, target: str) -> None:
    """Put a mount in place, making the file or directory it covers if that is missing."""
    tree.attach(_directory_at(target) if stat.S_ISDIR(os.fstat(tree.fd).st_mode) else _file_at(target))


def _own_directory(path: str) -> str:
    """The directory at `path`, which may not be a symlink: it would lead our mount astray."""
    if os.path.islink(path):
        raise OSError(errno.ENOTDIR, "a symlink, where the root filesystem must have a directory", path)
    return _directory_at(path)


def _directory_at(path: str) -> str:
    """The directory at `path`, made with its parents if it is missing, also where a symlink leads to."""
    place = os.path.realpath(path)
    _note(place)
    try:
        os.makedirs(place, 0o755)
    except FileExistsError:
        if not os.path.isdir(place):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from None
    return place


def _file_at(path: str) -> str:
    """The file of any kind at `path`, made empty if it is missing, also where a symlink leads to."""
    place = os.path.realpath(path)
    if not os.path.exists(place):
        _directory_at(os.path.dirname(place))
        _note(place)
        os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
    return place
