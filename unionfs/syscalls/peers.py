"""Who is at the other end of a Unix socket: SO_PEERCRED of unix(7), translated to our user namespace."""

from __future__ import annotations

import _socket
import os
import struct
from typing import Final, NamedTuple

_UCRED: Final = struct.Struct("=iII")  # struct ucred


class Peer(NamedTuple):
    """The process that connected, or that began to listen, as it was then."""

    pid: int
    uid: int
    gid: int


def peer_of(end: _socket.socket) -> Peer:
    """The process at the other end of a connected stream socket. Raises: OSError."""
    return Peer(*_UCRED.unpack(end.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _UCRED.size)))


def is_trusted(uid: int, owner: int | None = None) -> bool:
    """Whether `uid` is root, this process's user, or `owner`.

    All users without a number in this user namespace have one number together (/proc/sys/kernel/overflowuid): it is
    nobody's, unless it is mapped.
    """
    return uid in (0, os.geteuid(), owner) and _is_mapped(uid)


def _is_mapped(uid: int) -> bool:
    with open("/proc/self/uid_map", "rb") as file:
        extents = [tuple(map(int, line.split())) for line in file]
    return any(first <= uid < first + count for first, _, count in extents)
