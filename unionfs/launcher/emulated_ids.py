"""Emulated process credentials in a user namespace with one id: the rules of setuid(2), setgroups(2) and the like.

Pure. The rules are those of credentials(7) and of capabilities(7), "Effect of user ID changes": root has every
privilege, other users have none.
"""

from __future__ import annotations

import errno
import os
from typing import Final, NamedTuple

UNCHANGED: Final = 0xFFFFFFFF  # (uid_t) -1


class Ids(NamedTuple):
    """Real, effective and saved id of a user or a group."""

    real: int = 0
    effective: int = 0
    saved: int = 0


class Identity(NamedTuple):
    """The emulated credentials of a process."""

    user: Ids = Ids()
    group: Ids = Ids()
    groups: tuple[int, ...] = ()

    @property
    def is_root(self) -> bool:
        return self.user.effective == 0

    def in_group(self, gid: int) -> bool:
        return gid == self.group.effective or gid in self.groups


ROOT: Final = Identity()


def set_id(ids: Ids, wanted: int, *, privileged: bool) -> Ids:
    """Return `ids` after setuid(2) or setgid(2). Raises: EPERM, EINVAL."""
    if wanted == UNCHANGED:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    if privileged:
        return Ids(wanted, wanted, wanted)
    _require(wanted in (ids.real, ids.saved))
    return ids._replace(effective=wanted)


def set_re(ids: Ids, real: int, effective: int, *, privileged: bool) -> Ids:
    """Return `ids` after setreuid(2) or setregid(2). Raises: EPERM."""
    if not privileged:
        _require(real in (UNCHANGED, ids.real, ids.effective))
        _require(effective in (UNCHANGED, *ids))
    changed = _with(ids, real, effective, UNCHANGED)
    if real != UNCHANGED or effective not in (UNCHANGED, ids.real):
        changed = changed._replace(saved=changed.effective)
    return changed


def set_res(ids: Ids, real: int, effective: int, saved: int, *, privileged: bool) -> Ids:
    """Return `ids` after setresuid(2) or setresgid(2). Raises: EPERM."""
    for wanted in (real, effective, saved):
        _require(privileged or wanted in (UNCHANGED, *ids))
    return _with(ids, real, effective, saved)


def set_groups(identity: Identity, groups: tuple[int, ...], *, privileged: bool) -> Identity:
    """Return `identity` after setgroups(2). Raises: EPERM."""
    _require(privileged)
    return identity._replace(groups=groups)


def may_chown(identity: Identity, owner: tuple[int, int], uid: int, gid: int) -> bool:
    """Whether `identity` may change the owner of a file, now (uid, gid) `owner`, to `uid` and `gid` (chown(2)).

    UNCHANGED leaves one of them as it is.
    """
    if identity.is_root:
        return True
    mine = identity.user.effective == owner[0]
    return mine and uid in (UNCHANGED, owner[0]) and (gid in (UNCHANGED, owner[1]) or identity.in_group(gid))


def _with(ids: Ids, real: int, effective: int, saved: int) -> Ids:
    return Ids(*(old if new == UNCHANGED else new for old, new in zip(ids, (real, effective, saved), strict=True)))


def _require(allowed: bool) -> None:
    if not allowed:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
