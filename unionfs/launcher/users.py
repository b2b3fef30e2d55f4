"""Resolve the command's user, like "www-data" or "1000:staff", with the container's own passwd and group files.

Knows passwd(5) and group(5). Does not know the host's users: names have the ids that the container's files give them.
The rules are docker's: a number need not be in the files; an explicit group replaces the supplementary groups.
"""

from __future__ import annotations

import os
import stat
from typing import Final, NamedTuple

from unionfs.launcher.errors import LaunchError
from unionfs.trees.open_beneath import open_in_root

_LARGEST_FILE: Final = 16 << 20  # a passwd of a hundred thousand users; more is no passwd file
_LARGEST_ID: Final = 2**32 - 2


class Account(NamedTuple):
    """The ids of a process and its home directory."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


def look_up(user: str, root_fd: int | None = None) -> Account:
    """Resolve `user` with the files of the current root directory, or of the one at `root_fd`.

    Raises: LaunchError as `resolve` does.
    """
    return resolve(user, read("/etc/passwd", root_fd), read("/etc/group", root_fd))


def resolve(user: str, passwd: str, group: str) -> Account:
    """Return the identity that `user`, USER[:GROUP], names; empty means root. Pure.

    Raises: LaunchError when a name is not in its file or a number is no id.
    """
    user_name, _, group_name = (user or "0").partition(":")
    account = next((entry for entry in _entries(passwd, 6) if user_name in (entry[0], entry[2])), None)
    if account:
        uid, gid, home = _number(account[2]), _number(account[3]), account[5]
    else:
        uid, gid, home = _number(user_name or "0"), 0, "/"
    if uid is None or gid is None:
        raise LaunchError("finding the user", user_name, "no such user in the container's /etc/passwd")
    if not group_name:
        groups = _memberships(account[0], group) if account else ()
        return Account(uid, gid, groups, home or "/")
    listed = next((entry for entry in _entries(group, 3) if group_name in (entry[0], entry[2])), None)
    gid = _number(listed[2] if listed else group_name)
    if gid is None:
        raise LaunchError("finding the group", group_name, "no such group in the container's /etc/group")
    return Account(uid, gid, (), home or "/")


def _memberships(name: str, group: str) -> tuple[int, ...]:
    found = (_number(entry[2]) for entry in _entries(group, 4) if name in entry[3].split(","))
    return tuple(gid for gid in found if gid is not None)


def _entries(text: str, fields: int) -> list[list[str]]:
    """Return the lines that have at least `fields` fields, a name as the first and an id as the third."""
    lines = (line.strip().split(":") for line in text.splitlines())
    return [line for line in lines if len(line) >= fields and line[0] and _number(line[2]) is not None]


def _number(text: str) -> int | None:
    """Return `text` as an id, or None if it is no valid id."""
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(_LARGEST_ID))):
        return None
    return int(text) if int(text) <= _LARGEST_ID else None


def read(path: str, root_fd: int | None) -> str:
    """Read a file of the container; a missing one is empty.

    An image may have anything at this path: only a regular file is read, and at most `_LARGEST_FILE` bytes of it.
    """
    try:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        fd = os.open(path, flags) if root_fd is None else open_in_root(root_fd, path, flags)
    except OSError:
        return ""
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return ""
        return file.read(_LARGEST_FILE).decode(errors="surrogateescape")
