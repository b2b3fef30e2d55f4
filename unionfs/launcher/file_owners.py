"""The owners and devices of a container with one id: the supervisor's answers to chown, mknod and stat.

The union stores owners and devices (core.emulated_owners).
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from typing import Final

from unionfs import markers
from unionfs.launcher import emulated_ids
from unionfs.launcher.caller import Caller, LeaveToKernelError, as_id, as_signed
from unionfs.launcher.emulated_ids import UNCHANGED
from unionfs.launcher.process_identities import ProcessIdentities
from unionfs.syscalls import files, seccomp

CALLS: Final = (
    *("chown", "fchown", "lchown", "fchownat", "mknod", "mknodat"),
    *("stat", "fstat", "lstat", "newfstatat", "statx"),
)
"""The names of the calls, which are also those of the methods that answer them."""

_AT_FDCWD: Final = -100
_AT_SYMLINK_NOFOLLOW: Final = 0x100  # <linux/fcntl.h>
_AT_EMPTY_PATH: Final = 0x1000
_STATX_BASIC: Final = 0x7FF  # statx(2): the fields of stat(2)
_KNOWN_MAX: Final = 100_000  # files in the cache of owners; it is cleared when it is full
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


class FileOwners:
    """The emulated owners of files, for one container's processes."""

    def __init__(self, identities: ProcessIdentities, proc_fd: int, stat_ids: int) -> None:
        self._identities: Final = identities
        self._proc_fd: Final = proc_fd  # see Supervisor
        self._stat_ids: Final = stat_ids  # offset of st_uid in this machine's struct stat
        self._owners: dict[tuple[int, int], tuple[int, int, bytes]] = {}  # (dev, ino) -> ctime, owner
        self._unions: dict[int, bool] = {}  # st_dev -> whether owners are stored there

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

    def chown(self, caller: Caller) -> int:
        address, uid, gid = caller.args[:3]
        return self._change_owner(caller, self._object(caller, _AT_FDCWD, address, 0), uid, gid)

    def lchown(self, caller: Caller) -> int:
        address, uid, gid = caller.args[:3]
        return self._change_owner(caller, self._object(caller, _AT_FDCWD, address, _AT_SYMLINK_NOFOLLOW), uid, gid)

    def fchown(self, caller: Caller) -> int:
        fd, uid, gid = caller.args[:3]
        return self._change_owner(caller, caller.open(f"fd/{as_signed(fd)}"), uid, gid)

    def fchownat(self, caller: Caller) -> int:
        dir_fd, address, uid, gid, flags = caller.args[:5]
        if flags & ~(_AT_SYMLINK_NOFOLLOW | _AT_EMPTY_PATH):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return self._change_owner(caller, self._object(caller, as_signed(dir_fd), address, flags), uid, gid)

    def _change_owner(self, caller: Caller, fd: int, uid: int, gid: int) -> int:
        try:
            uid, gid = as_id(uid), as_id(gid)
            path = b"self/fd/%d" % fd
            kept = self._stored_owner(path)
            if kept is None:
                if uid in (0, UNCHANGED) and gid in (0, UNCHANGED):
                    raise LeaveToKernelError
                return 0  # a filesystem of the host, where all files belong to the user and stay so
            owner = _parse_owner(kept)
            if not emulated_ids.may_chown(self._identities.identity_of(caller), owner, uid, gid):
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
            value = b"%d:%d" % (uid if uid != UNCHANGED else -1, gid if gid != UNCHANGED else -1)
            caller.verify()
            os.setxattr(path, markers.OWNER_XATTR, value)
        finally:
            os.close(fd)
        return 0

    def mknod(self, caller: Caller) -> int:
        address, mode, device = caller.args[:3]
        return self._make_device(caller, _AT_FDCWD, address, mode, device)

    def mknodat(self, caller: Caller) -> int:
        dir_fd, address, mode, device = caller.args[:4]
        return self._make_device(caller, as_signed(dir_fd), address, mode, device)

    def _make_device(self, caller: Caller, dir_fd: int, address: int, mode: int, device: int) -> int:
        """Make a device under a random name, then rename it, so that the kernel's cache learns the name as usual."""
        mode, identity = mode & 0xFFFF, self._identities.identity_of(caller)
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
                *self._identities.creator_ids(caller),
                permissions,
                stat.S_IFMT(mode),
                (os.major(device), os.minor(device)),
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

    def stat(self, caller: Caller) -> int:
        return self._answer_stat(caller, _AT_FDCWD, caller.args[0], 0, caller.args[1])

    def lstat(self, caller: Caller) -> int:
        return self._answer_stat(caller, _AT_FDCWD, caller.args[0], _AT_SYMLINK_NOFOLLOW, caller.args[1])

    def newfstatat(self, caller: Caller) -> int:
        dir_fd, address, buffer, flags = caller.args[:4]
        return self._answer_stat(caller, as_signed(dir_fd), address, flags, buffer)

    def fstat(self, caller: Caller) -> int:
        return self._answer_stat(caller, as_signed(caller.args[0]), 0, _AT_EMPTY_PATH, caller.args[1])

    def statx(self, caller: Caller) -> int:
        dir_fd, address, flags, mask, buffer = caller.args[:5]
        return self._answer_stat(caller, as_signed(dir_fd), address, flags, buffer, mask & 0xFFFFFFFF | _STATX_BASIC)

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
        struct.pack_into("II", data, self._stat_ids if mask is None else 20, *_parse_owner(kept))
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


def _parse_owner(kept: bytes) -> tuple[int, int]:
    uid, _, gid = kept.partition(b":")
    return int(uid), int(gid)
