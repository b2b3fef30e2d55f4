"""The identities of processes with one id: the supervisor's answers to setuid, getuid and the like.

A process's RLIMIT_RSS, which the kernel does not use, holds the number of its identity; it is inherited as an identity
is. Processes of the container cannot change the two limits that encode an identity, and see them as unlimited.
"""

from __future__ import annotations

import errno
import os
import resource
import struct
from collections.abc import Callable
from typing import Final

from unionfs import markers
from unionfs.launcher import emulated_ids
from unionfs.launcher.caller import Caller, LeaveToKernelError, as_id, as_signed
from unionfs.launcher.emulated_ids import ROOT, UNCHANGED, Identity, Ids

CALLS: Final = (
    *("setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setfsuid", "setfsgid", "setgroups"),
    *("getuid", "geteuid", "getgid", "getegid", "getresuid", "getresgid", "getgroups"),
    *("prctl", "getrlimit", "setrlimit", "prlimit64"),
)
"""The names of the calls, which are also those of the methods that answer them."""

_PR_SET_KEEPCAPS: Final = 8  # prctl(2)
_OWN_LIMITS: Final = (resource.RLIMIT_RSS, markers.IDENTITY_LIMIT)
BY_ARGUMENT: Final = {
    "prctl": (0, (_PR_SET_KEEPCAPS,)),
    "getrlimit": (0, _OWN_LIMITS),
    "setrlimit": (0, _OWN_LIMITS),
    "prlimit64": (1, _OWN_LIMITS),
}
"""Calls that are intercepted with these values of this argument only."""
_UNLIMITED: Final = struct.pack("QQ", 0xFFFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)  # struct rlimit64
_GROUPS_MAX: Final = 65536  # setgroups(2)
_NUMBERED: Final = 1 << 62  # in RLIMIT_RSS, which has had no effect since Linux 2.4.30 (getrlimit(2)): an identity


class ProcessIdentities:
    """The emulated ids of one container's processes."""

    def __init__(self, groups: tuple[int, ...] = ()) -> None:
        first = ROOT._replace(groups=groups)  # the identity of processes that have no number
        self._identities: list[Identity] = [first]  # by number; only added to
        self._number_of: dict[Identity, int] = {first: 0}  # the reverse
        # Thread -> `Caller.program_identity` when it set PR_SET_KEEPCAPS.
        self._keepcaps_threads: dict[int, tuple[int, int, int]] = {}

    def identity_of(self, caller: Caller) -> Identity:
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

    def prctl(self, caller: Caller) -> int:
        """Record PR_SET_KEEPCAPS, the only intercepted option: privileges survive a change of user, until execve(2)."""
        thread = caller.call.thread
        if caller.args[1]:
            self._keepcaps_threads[thread] = caller.program_identity()
        else:
            self._keepcaps_threads.pop(thread, None)
        raise LeaveToKernelError

    def setrlimit(self, caller: Caller) -> int:
        """Ignore a change of a limit that encodes an identity: pam_limits(8) sets all limits to what process 1 has."""
        return 0

    def getrlimit(self, caller: Caller) -> int:
        caller.write_memory(caller.args[1], _UNLIMITED)
        return 0

    def prlimit64(self, caller: Caller) -> int:
        if caller.args[3]:
            caller.write_memory(caller.args[3], _UNLIMITED)
        return 0

    def _is_privileged(self, caller: Caller, identity: Identity) -> bool:
        if identity.is_root:
            return True
        kept = self._keepcaps_threads.get(caller.call.thread)
        return kept is not None and kept == caller.program_identity()

    def getuid(self, caller: Caller) -> int:
        return self.identity_of(caller).user.real

    def geteuid(self, caller: Caller) -> int:
        return self.identity_of(caller).user.effective

    def getgid(self, caller: Caller) -> int:
        return self.identity_of(caller).group.real

    def getegid(self, caller: Caller) -> int:
        return self.identity_of(caller).group.effective

    def getresuid(self, caller: Caller) -> int:
        return self._write_ids(caller, self.identity_of(caller).user)

    def getresgid(self, caller: Caller) -> int:
        return self._write_ids(caller, self.identity_of(caller).group)

    @staticmethod
    def _write_ids(caller: Caller, ids: Ids) -> int:
        for address, number in zip(caller.args, ids, strict=False):
            caller.write_memory(address, struct.pack("I", number))
        return 0

    def getgroups(self, caller: Caller) -> int:
        groups = self.identity_of(caller).groups
        size = as_signed(caller.args[0])
        if size < 0 or 0 < size < len(groups):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if size and groups:
            caller.write_memory(caller.args[1], struct.pack(f"{len(groups)}I", *groups))
        return len(groups)

    def setgroups(self, caller: Caller) -> int:
        count = as_signed(caller.args[0])
        if not 0 <= count <= _GROUPS_MAX:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        data = caller.read_memory(caller.args[1], 4 * count) if count else b""
        identity = self.identity_of(caller)
        groups: tuple[int, ...] = struct.unpack(f"{count}I", data)
        return self._set_identity(
            caller, emulated_ids.set_groups(identity, groups, privileged=self._is_privileged(caller, identity))
        )

    def setuid(self, caller: Caller) -> int:
        return self._set_ids(caller, emulated_ids.set_id, 1, of_user=True)

    def setgid(self, caller: Caller) -> int:
        return self._set_ids(caller, emulated_ids.set_id, 1, of_user=False)

    def setreuid(self, caller: Caller) -> int:
        return self._set_ids(caller, emulated_ids.set_re, 2, of_user=True)

    def setregid(self, caller: Caller) -> int:
        return self._set_ids(caller, emulated_ids.set_re, 2, of_user=False)

    def setresuid(self, caller: Caller) -> int:
        return self._set_ids(caller, emulated_ids.set_res, 3, of_user=True)

    def setresgid(self, caller: Caller) -> int:
        return self._set_ids(caller, emulated_ids.set_res, 3, of_user=False)

    def _set_ids(self, caller: Caller, change: Callable[..., Ids], count: int, *, of_user: bool) -> int:
        """Emulate a system call that changes the user ids or the group ids by its first `count` arguments."""
        identity = self.identity_of(caller)
        wanted, privileged = map(as_id, caller.args[:count]), self._is_privileged(caller, identity)
        ids = change(identity.user if of_user else identity.group, *wanted, privileged=privileged)
        return self._set_identity(caller, identity._replace(user=ids) if of_user else identity._replace(group=ids))

    def setfsuid(self, caller: Caller) -> int:
        """Emulate setfsuid(2), which returns the previous id and never fails: without the right it changes nothing."""
        identity, wanted = self.identity_of(caller), as_id(caller.args[0])
        before, gid = self.creator_ids(caller)
        if wanted != UNCHANGED and (identity.is_root or wanted in identity.user):
            self._set_identity(caller, identity, (wanted, gid))
        return before

    def setfsgid(self, caller: Caller) -> int:
        identity, wanted = self.identity_of(caller), as_id(caller.args[0])
        uid, before = self.creator_ids(caller)
        if wanted != UNCHANGED and (identity.is_root or wanted in identity.group):
            self._set_identity(caller, identity, (uid, wanted))
        return before

    @staticmethod
    def creator_ids(caller: Caller) -> tuple[int, int]:
        return markers.unpack_identity(caller.limit(markers.IDENTITY_LIMIT))
