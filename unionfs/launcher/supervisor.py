"""The supervisor of a container with one id: it answers system calls about owners, devices and users.

The kernel refuses chown(2), setuid(2) and the like for ids that the container's user namespace does not map, and
mknod(2) of devices altogether. A filter (syscalls.seccomp) intercepts these calls, and the supervisor emulates them. It
is a process outside of the container's pid namespace. The union stores owners and devices (core.emulated_owners), the
supervisor the identities (launcher.emulated_ids). A process's RLIMIT_RSS, which the kernel does not use, holds the
number of its identity; it is inherited as an identity is. stat(2) and getuid(2) return the emulated values. Processes
of the container cannot change the two limits, and see them as unlimited.

This protects nothing: for the kernel, all processes of the container have the same uid. Calls that cannot be emulated
are left to the kernel.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import socket
import stat
import struct
from collections.abc import Callable
from typing import Final, NoReturn

from unionfs import markers
from unionfs.launcher import emulated_ids
from unionfs.launcher.caller import Caller, CallerGoneError
from unionfs.launcher.emulated_ids import ROOT, UNCHANGED, Identity, Ids
from unionfs.syscalls import files, seccomp
from unionfs.syscalls.namespaces import set_parent_death_signal, set_process_name
from unionfs.syscalls.seccomp import Call

NAME: Final = "unionfs-ids"
"""The name of the process in `ps`."""

INTERCEPTED: Final = (
    *("chown", "fchown", "lchown", "fchownat", "mknod", "mknodat"),
    *("stat", "fstat", "lstat", "newfstatat", "statx"),
    *("setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setfsuid", "setfsgid", "setgroups"),
    *("getuid", "geteuid", "getgid", "getegid", "getresuid", "getresgid", "getgroups"),
    *("prctl", "getrlimit", "setrlimit", "prlimit64"),
)

_PR_SET_KEEPCAPS: Final = 8  # prctl(2)
_OWN_LIMITS: Final = (resource.RLIMIT_RSS, markers.IDENTITY_LIMIT)
_BY_ARGUMENT: Final = {
    "prctl": (0, (_PR_SET_KEEPCAPS,)),
    "getrlimit": (0, _OWN_LIMITS),
    "setrlimit": (0, _OWN_LIMITS),
    "prlimit64": (1, _OWN_LIMITS),
}
"""Calls that are intercepted with these values of this argument only."""
_UNLIMITED: Final = struct.pack("QQ", 0xFFFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)  # struct rlimit64
_AT_FDCWD: Final = -100
_AT_SYMLINK_NOFOLLOW: Final = 0x100  # <linux/fcntl.h>
_AT_SYMLINK_FOLLOW: Final = 0x400
_AT_NO_AUTOMOUNT: Final = 0x800
_AT_EMPTY_PATH: Final = 0x1000
_COUNT: Final = struct.Struct("I")
_GROUPS_MAX: Final = 65536  # setgroups(2)
_STATX_BASIC: Final = 0x7FF  # statx(2): the fields of stat(2)
_KNOWN_MAX: Final = 100_000  # files in the cache of owners; it is cleared when it is full
_NUMBERED: Final = 1 << 62  # in RLIMIT_RSS, which has had no effect since Linux 2.4.30 (getrlimit(2)): an identity

_STAT_CTIME: Final = struct.Struct("qq")  # at 104 of struct stat on all machines known here
_PER_PROCESS_PATHS: Final = (
    b"/proc/self/",
    b"/proc/thread-self/",
    b"/dev/fd/",
    b"/dev/stdin",
    b"/dev/stdout",
    b"/dev/stderr",
)
"""Path prefixes that resolve differently in each process."""


class LeaveToKernelError(Exception):
    """Raised to let the kernel execute the call."""


def start(prepare: Callable[[], None] = lambda: None) -> tuple[int, socket.socket]:
    """Fork a supervisor. Return its pid and the socket for `install_filter`. It ends with the last process that has the
    filter, or with this process.

    Preconditions: after `prepare`, it is root of the container's user namespace; our /proc shows the container's
    processes.
    """
    ours, theirs = socket.socketpair()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _run_supervisor(theirs, parent, prepare)
    theirs.close()
    return pid, ours


def install_filter(supervisor_socket: socket.socket, groups: tuple[int, ...] = ()) -> None:
    """Install the filter for this process and its descendants, and send the listener to the supervisor.

    `groups` are the supplementary groups that this process then has. It cannot set them itself: setgroups(2) passes
    them in memory, which the supervisor cannot read before execve(2), since the process is not dumpable.
    Raises: OSError when the kernel refuses a filter with a listener.
    """
    listener = seccomp.install_filter(INTERCEPTED, _BY_ARGUMENT)
    socket.send_fds(supervisor_socket, [struct.pack(f"I{len(groups)}I", len(groups), *groups)], [listener])
    os.close(listener)
    supervisor_socket.close()


def _run_supervisor(supervisor_socket: socket.socket, parent: int, prepare: Callable[[], None]) -> NoReturn:
    status = 1
    try:
        prepare()
        set_parent_death_signal(9)
        if os.getppid() != parent:
            os._exit(0)
        set_process_name(NAME)
        proc_fd = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        _close_others({supervisor_socket.fileno(), proc_fd, 2})
        count, (listener,), _, _ = socket.recv_fds(supervisor_socket, _COUNT.size, 1, socket.MSG_CMSG_CLOEXEC)
        groups = supervisor_socket.recv(_COUNT.size * _COUNT.unpack(count)[0], socket.MSG_WAITALL)
        supervisor_socket.close()
        Supervisor(listener, proc_fd, struct.unpack(f"{len(groups) // _COUNT.size}I", groups)).run()
        status = 0
    except ValueError:
        status = 0  # the socket was closed without a listener: there is no command
    finally:
        os._exit(status)


def _close_others(kept: set[int]) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept:
            with contextlib.suppress(OSError):
                os.close(int(name))


class Supervisor:
    """Answers one container's calls, one after the other."""

    def __init__(self, listener: int, proc_fd: int, groups: tuple[int, ...] = ()) -> None:
        self._listener: Final = listener
        self._proc_fd: Final = proc_fd  # the host's /proc; also our working directory, for paths like self/fd/N
        first = ROOT._replace(groups=groups)  # the identity of processes that have no number
        self._identities: list[Identity] = [first]  # by number; only added to
        self._number_of: dict[Identity, int] = {first: 0}  # the reverse
        # Thread -> `Caller.program_identity` when it set PR_SET_KEEPCAPS.
        self._keepcaps_threads: dict[int, tuple[int, int, int]] = {}
        self._owners: dict[tuple[int, int], tuple[int, int, bytes]] = {}  # (dev, ino) -> ctime, owner
        self._unions: dict[int, bool] = {}  # st_dev -> whether owners are kept there
        here = seccomp.machine()
        assert here is not None
        self._machine: Final = here
        self._answers: Final[dict[int, Callable[[Caller], int]]] = {
            here.numbers[name]: getattr(self, f"_{name}") for name in INTERCEPTED if name in here.numbers
        }

    def run(self) -> None:
        """Answer calls until the last process with the filter has ended."""
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        os.fchdir(self._proc_fd)
        while True:
            ((_, events),) = poll.poll()
            if not events & select.POLLIN:
                return
            try:
                call = seccomp.receive(self._listener)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINTR):
                    continue  # the caller was interrupted or has ended
                raise
            with contextlib.suppress(FileNotFoundError):  # the call was interrupted before the answer
                self._answer(call)

    def _answer(self, call: Call) -> None:
        with contextlib.closing(Caller(self._listener, self._proc_fd, call)) as caller:
            try:
                value = self._answers[call.number](caller)
            except CallerGoneError:
                return
            except LeaveToKernelError:
                seccomp.answer(self._listener, call, flags=seccomp.CONTINUE)
            except OSError as error:
                seccomp.answer(self._listener, call, code=error.errno or errno.EIO)
            except Exception:  # a bug here must not hang the container
                seccomp.answer(self._listener, call, flags=seccomp.CONTINUE)
                raise
            else:
                seccomp.answer(self._listener, call, value)

    # -- identities of processes -------------------------------------------------------------------------------------

    def _identity_of(self, caller: Caller) -> Identity:
        number = caller.limit(resource.RLIMIT_RSS) - _NUMBERED
        return self._identities[number] if 0 <= number < len(self._identities) else self._identities[0]

    def _set_identity(self, caller: Caller, identity: Identity, creator: tuple[int, int] | None = None) -> int:
        """Set the identity of the calling process. Its new files belong to `creator`, else to its effective ids."""
        number = self._number_of.setdefault(identity, len(self._identities))
        if number == len(self._identities):
            self._identities.append(identity)
        uid, gid = creator or (identity.user.effective, identity.group.effective)
        for limit, value in (
            (resource.RLIMIT_RSS, _NUMBERED + number if number else resource.RLIM_INFINITY),
            (markers.IDENTITY_LIMIT, markers.pack_identity(uid, gid)),
        ):
            caller.set_limit(limit, value)
        return 0

    def _prctl(self, caller: Caller) -> int:
        """Record PR_SET_KEEPCAPS, the only intercepted option: privileges survive a change of user, until execve(2)."""
        thread = caller.call.thread
        if caller.args[1]:
            self._keepcaps_threads[thread] = caller.program_identity()
        else:
            self._keepcaps_threads.pop(thread, None)
        raise LeaveToKernelError

    def _setrlimit(self, caller: Caller) -> int:
        """Ignore a change of a limit that encodes an identity: pam_limits(8) sets all limits to what process 1 has."""
        return 0

    def _getrlimit(self, caller: Caller) -> int:
        caller.write_memory(caller.args[1], _UNLIMITED)
        return 0

    def _prlimit64(self, caller: Caller) -> int:
        if caller.args[3]:
            caller.write_memory(caller.args[3], _UNLIMITED)
        return 0

    def _is_privileged(self, caller: Caller, identity: Identity) -> bool:
        if identity.is_root:
            return True
        kept = self._keepcaps_threads.get(caller.call.thread)
        return kept is not None and kept == caller.program_identity()

    def _getuid(self, caller: Caller) -> int:
        return self._identity_of(caller).user.real

    def _geteuid(self, caller: Caller) -> int:
        return self._identity_of(caller).user.effective

    def _getgid(self, caller: Caller) -> int:
        return self._identity_of(caller).group.real

    def _getegid(self, caller: Caller) -> int:
        return self._identity_of(caller).group.effective

    def _getresuid(self, caller: Caller) -> int:
        return self._write_ids(caller, self._identity_of(caller).user)

    def _getresgid(self, caller: Caller) -> int:
        return self._write_ids(caller, self._identity_of(caller).group)

    @staticmethod
    def _write_ids(caller: Caller, ids: Ids) -> int:
        for address, number in zip(caller.args, ids, strict=False):
            caller.write_memory(address, struct.pack("I", number))
        return 0

    def _getgroups(self, caller: Caller) -> int:
        groups = self._identity_of(caller).groups
        size = _signed(caller.args[0])
        if size < 0 or 0 < size < len(groups):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if size and groups:
            caller.write_memory(caller.args[1], struct.pack(f"{len(groups)}I", *groups))
        return len(groups)

    def _setgroups(self, caller: Caller) -> int:
        count = _signed(caller.args[0])
        if not 0 <= count <= _GROUPS_MAX:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        data = caller.read_memory(caller.args[1], 4 * count) if count else b""
        identity = self._identity_of(caller)
        groups: tuple[int, ...] = struct.unpack(f"{count}I", data)
        return self._set_identity(
            caller, emulated_ids.set_groups(identity, groups, privileged=self._is_privileged(caller, identity))
        )

    def _setuid(self, caller: Caller) -> int:
        identity = self._identity_of(caller)
        ids = emulated_ids.set_id(identity.user, _id(caller.args[0]), privileged=self._is_privileged(caller, identity))
        return self._set_identity(caller, identity._replace(user=ids))

    def _setgid(self, caller: Caller) -> int:
        identity = self._identity_of(caller)
        ids = emulated_ids.set_id(identity.group, _id(caller.args[0]), privileged=self._is_privileged(caller, identity))
        return self._set_identity(caller, identity._replace(group=ids))

    def _setreuid(self, caller: Caller) -> int:
        identity = self._identity_of(caller)
        ids = emulated_ids.set_re(
            identity.user, *map(_id, caller.args[:2]), privileged=self._is_privileged(caller, identity)
        )
        return self._set_identity(caller, identity._replace(user=ids))

    def _setregid(self, caller: Caller) -> int:
        identity = self._identity_of(caller)
        ids = emulated_ids.set_re(
            identity.group, *map(_id, caller.args[:2]), privileged=self._is_privileged(caller, identity)
        )
        return self._set_identity(caller, identity._replace(group=ids))

    def _setresuid(self, caller: Caller) -> int:
        identity = self._identity_of(caller)
        ids = emulated_ids.set_res(
            identity.user, *map(_id, caller.args[:3]), privileged=self._is_privileged(caller, identity)
        )
        return self._set_identity(caller, identity._replace(user=ids))

    def _setresgid(self, caller: Caller) -> int:
        identity = self._identity_of(caller)
        ids = emulated_ids.set_res(
            identity.group, *map(_id, caller.args[:3]), privileged=self._is_privileged(caller, identity)
        )
        return self._set_identity(caller, identity._replace(group=ids))

    def _setfsuid(self, caller: Caller) -> int:
        """Emulate setfsuid(2), which returns the previous id and never fails: without the right it changes nothing."""
        identity, wanted = self._identity_of(caller), _id(caller.args[0])
        before, gid = self._creator_ids(caller)
        if wanted != UNCHANGED and (identity.is_root or wanted in identity.user):
            self._set_identity(caller, identity, (wanted, gid))
        return before

    def _setfsgid(self, caller: Caller) -> int:
        identity, wanted = self._identity_of(caller), _id(caller.args[0])
        uid, before = self._creator_ids(caller)
        if wanted != UNCHANGED and (identity.is_root or wanted in identity.group):
            self._set_identity(caller, identity, (uid, wanted))
        return before

    @staticmethod
    def _creator_ids(caller: Caller) -> tuple[int, int]:
        return markers.unpack_identity(caller.limit(markers.IDENTITY_LIMIT))

    # -- path resolution ---------------------------------------------------------------------------------------------

    def _base_directory(self, caller: Caller, dir_fd: int, path: bytes) -> int:
        """Return a directory descriptor relative to which `path` resolves as for the caller. Changes our root to the
        caller's.

        Raises: LeaveToKernelError for a path that resolves differently in each process.
        """
        if path.startswith(_PER_PROCESS_PATHS):
            raise LeaveToKernelError
        caller.enter_root()
        if path.startswith(b"/"):
            return os.dup(self._proc_fd)
        where = "cwd" if dir_fd == _AT_FDCWD else f"fd/{dir_fd}"
        return caller.open(where)

    def _object(self, caller: Caller, dir_fd: int, address: int, flags: int) -> int:
        """Return an O_PATH descriptor of the file that a call names."""
        path = caller.read_string(address)
        if not path:
            if not flags & _AT_EMPTY_PATH:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            return caller.open("cwd" if dir_fd == _AT_FDCWD else f"fd/{dir_fd}")
        place = self._base_directory(caller, dir_fd, path)
        try:
            nofollow = os.O_NOFOLLOW if flags & _AT_SYMLINK_NOFOLLOW else 0
            return os.open(path, os.O_PATH | os.O_CLOEXEC | nofollow, dir_fd=place)
        finally:
            os.close(place)

    @staticmethod
    def _stored_owner(path: bytes) -> bytes | None:
        """Return the owner that the union stores for a file, as `UID:GID`; None for a file outside of a union."""
        try:
            return os.getxattr(path, markers.OWNER_XATTR)
        except OSError as error:
            if error.errno in (errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES):
                return None
            raise

    # -- owners and devices ------------------------------------------------------------------------------------------

    def _chown(self, caller: Caller) -> int:
        address, uid, gid = caller.args[:3]
        return self._change_owner(caller, self._object(caller, _AT_FDCWD, address, 0), uid, gid)

    def _lchown(self, caller: Caller) -> int:
        address, uid, gid = caller.args[:3]
        return self._change_owner(caller, self._object(caller, _AT_FDCWD, address, _AT_SYMLINK_NOFOLLOW), uid, gid)

    def _fchown(self, caller: Caller) -> int:
        fd, uid, gid = caller.args[:3]
        return self._change_owner(caller, caller.open(f"fd/{_signed(fd)}"), uid, gid)

    def _fchownat(self, caller: Caller) -> int:
        dir_fd, address, uid, gid, flags = caller.args[:5]
        if flags & ~(_AT_SYMLINK_NOFOLLOW | _AT_EMPTY_PATH):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return self._change_owner(caller, self._object(caller, _signed(dir_fd), address, flags), uid, gid)

    def _change_owner(self, caller: Caller, fd: int, uid: int, gid: int) -> int:
        try:
            uid, gid = _id(uid), _id(gid)
            path = b"self/fd/%d" % fd
            kept = self._stored_owner(path)
            if kept is None:
                if uid in (0, UNCHANGED) and gid in (0, UNCHANGED):
                    raise LeaveToKernelError
                return 0  # a filesystem of the host, where all files belong to the user and stay so
            owner = _parse_owner(kept)
            if not emulated_ids.may_chown(self._identity_of(caller), owner, uid, gid):
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
            value = b"%d:%d" % (uid if uid != UNCHANGED else -1, gid if gid != UNCHANGED else -1)
            caller.verify()
            os.setxattr(path, markers.OWNER_XATTR, value)
        finally:
            os.close(fd)
        return 0

    def _mknod(self, caller: Caller) -> int:
        address, mode, device = caller.args[:3]
        return self._make_device(caller, _AT_FDCWD, address, mode, device)

    def _mknodat(self, caller: Caller) -> int:
        dir_fd, address, mode, device = caller.args[:4]
        return self._make_device(caller, _signed(dir_fd), address, mode, device)

    def _make_device(self, caller: Caller, dir_fd: int, address: int, mode: int, device: int) -> int:
        """Make a device under a random name, then rename it, so that the kernel's cache learns the name as usual."""
        mode, identity = mode & 0xFFFF, self._identity_of(caller)
        if not (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)) or not identity.is_root or not device:
            raise LeaveToKernelError
        path = caller.read_string(address)
        above, _, name = path.rpartition(b"/")
        if not name or name in (b".", b".."):
            raise LeaveToKernelError
        place = self._base_directory(caller, dir_fd, path)
        try:
            parent = os.open(
                above or (b"/" if path.startswith(b"/") else b"."), os.O_PATH | os.O_DIRECTORY, dir_fd=place
            )
        finally:
            os.close(place)
        try:
            if self._stored_owner(b"self/fd/%d" % parent) is None:
                raise LeaveToKernelError
            permissions = stat.S_IMODE(mode) & ~caller.umask()
            override = markers.Override(
                *self._creator_ids(caller), permissions, stat.S_IFMT(mode), (os.major(device), os.minor(device))
            )
            aside = b".unionfs-%s" % os.urandom(8).hex().encode()
            value = b"%s/%s" % (markers.write_override(override), aside)
            caller.verify()
            os.setxattr(b"self/fd/%d" % parent, markers.DEVICE_XATTR, value)
            try:
                files.renameat2(parent, aside, parent, name, files.RENAME_NOREPLACE)
            except OSError:
                os.unlink(aside, dir_fd=parent)
                raise
        finally:
            os.close(parent)
        return 0

    # -- attributes --------------------------------------------------------------------------------------------------

    def _stat(self, caller: Caller) -> int:
        return self._answer_stat(caller, _AT_FDCWD, caller.args[0], 0, caller.args[1])

    def _lstat(self, caller: Caller) -> int:
        return self._answer_stat(caller, _AT_FDCWD, caller.args[0], _AT_SYMLINK_NOFOLLOW, caller.args[1])

    def _newfstatat(self, caller: Caller) -> int:
        dir_fd, address, buffer, flags = caller.args[:4]
        return self._answer_stat(caller, _signed(dir_fd), address, flags, buffer)

    def _fstat(self, caller: Caller) -> int:
        return self._answer_stat(caller, _signed(caller.args[0]), 0, _AT_EMPTY_PATH, caller.args[1])

    def _statx(self, caller: Caller) -> int:
        dir_fd, address, flags, mask, buffer = caller.args[:5]
        return self._answer_stat(caller, _signed(dir_fd), address, flags, buffer, mask & 0xFFFFFFFF | _STATX_BASIC)

    def _answer_stat(
        self, caller: Caller, dir_fd: int, address: int, flags: int, buffer: int, mask: int | None = None
    ) -> int:
        """Answer stat(2) with the stored owner if that is not root. Otherwise, and on errors, the kernel answers."""
        place = -1
        try:
            path = caller.read_string(address) if address else b""
            if path:
                place = self._base_directory(caller, dir_fd, path)
                data = seccomp.raw_stat(place, path, flags & ~_AT_EMPTY_PATH, mask)
            else:
                place = caller.open("cwd" if dir_fd == _AT_FDCWD else f"fd/{dir_fd}")
                data = seccomp.raw_stat(place, b"", flags | _AT_EMPTY_PATH, mask)
            kept = self._cached_owner(data, mask is not None, place, path, follow=not flags & _AT_SYMLINK_NOFOLLOW)
        except OSError:
            raise LeaveToKernelError from None
        finally:
            if place >= 0:
                os.close(place)
        if kept is None or kept == b"0:0":
            raise LeaveToKernelError
        struct.pack_into("II", data, self._machine.stat_ids if mask is None else 20, *_parse_owner(kept))
        caller.write_memory(buffer, bytes(data))
        return 0

    def _cached_owner(self, data: bytearray, extended: bool, place: int, path: bytes, *, follow: bool) -> bytes | None:
        """Return the stored owner of the file with these attributes, from the cache if its ctime is unchanged."""
        if extended:
            ino, ctime, ctime_ns = *struct.unpack_from("Q", data, 32), *struct.unpack_from("qI", data, 96)
            device = os.makedev(*struct.unpack_from("II", data, 136))
        else:
            device, ino = struct.unpack_from("QQ", data)
            ctime, ctime_ns = _STAT_CTIME.unpack_from(data, 104)
        if self._unions.get(device) is False:
            return None
        known = self._owners.get((device, ino))
        if known is not None and known[:2] == (ctime, ctime_ns):
            return known[2]
        if path:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW), dir_fd=place)
        try:
            kept = self._stored_owner(b"self/fd/%d" % place)
        finally:
            if path:
                os.close(place)
        self._unions[device] = kept is not None
        if kept is not None:
            if len(self._owners) >= _KNOWN_MAX:
                self._owners.clear()
            self._owners[device, ino] = (ctime, ctime_ns, kept)
        return kept


def _signed(number: int) -> int:
    """Convert a register's value to a signed int."""
    number &= 0xFFFFFFFF
    return number - (1 << 32) if number >> 31 else number


def _id(number: int) -> int:
    return number & 0xFFFFFFFF


def _parse_owner(kept: bytes) -> tuple[int, int]:
    uid, _, gid = kept.partition(b":")
    return int(uid), int(gid)
