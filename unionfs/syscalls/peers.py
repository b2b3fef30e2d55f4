"""Identify the process at the other end of a Unix socket with SO_PEERCRED (unix(7)), in ids of our user namespace."""

from __future__ import annotations

import _socket
import os
import struct
from typing import Final, NamedTuple

_UCRED: Final = struct.Struct("=iII")  # struct ucred
_ALL: Final = (1 << 32) - 1  # the number of user ids; (uid_t) -1 is no id


class Peer(NamedTuple):
    """Pid and ids of the process at the other end, as they were when it called connect(2) or listen(2)."""

    pid: int
    uid: int
    gid: int


def peer_of(end: _socket.socket) -> Peer:
    """Return the process at the other end of a connected stream socket. Raises: OSError."""
    return Peer(*_UCRED.unpack(end.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _UCRED.size)))


def is_trusted(uid: int, owner: int | None = None) -> bool:
    """Whether `uid` is root, this process's user, or `owner`.

    All users that this user namespace does not map share one number (/proc/sys/kernel/overflowuid). It is not trusted
    unless it is mapped, since it does not identify a user.
    """
    return uid in (0, os.geteuid(), owner) and is_mapped(uid)


def is_mapped(uid: int) -> bool:
    """Whether this user namespace maps `uid`. Otherwise it is the number shared by all unmapped users."""
    return any(first <= uid < first + count for first, _, count in _uid_map())


def has_all_users() -> bool:
    """Whether this user namespace maps all users of the machine.

    In others, root has the rights of an ordinary user only, and unmapped owners of files look like an ordinary user.
    """
    return sum(count for _, _, count in _uid_map()) == _ALL


def _uid_map() -> list[tuple[int, int, int]]:
    with open("/proc/self/uid_map", "rb") as file:
        rows = [[int(number) for number in line.split()] for line in file]
    return [(first, outside, count) for first, outside, count in rows]
