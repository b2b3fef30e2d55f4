"""Who the command runs as: a wish like "www-data" or "1000:staff" against the container's own passwd and group files.

Knows passwd(5) and group(5). Does not know the host's users: names mean what the container's files say. The rules are
docker's: a number need not be in the files; a group that is asked for replaces the supplementary ones.
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
    """The ids of a process and the home it starts in."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


def look_up(wish: str, root_fd: int | None = None) -> Account:
    """Resolve `wish` with the files of the current root directory, or that of `root_fd`. Raises: LaunchError as
    `resolve` does."""
    return resolve(wish, _read("/etc/passwd", root_fd), _read("/etc/group", root_fd))


def resolve(wish: str, passwd: str, group: str) -> Account:
    """The identity that `wish`, USER[:GROUP], names; empty means root. Pure.

    Raises: LaunchError when a name is in neither file or a number is no id.
    """
    user_wish, _, group_wish = (wish or "0").partition(":")
    user = next((entry for entry in _entries(passwd, 6) if user_wish in (entry[0], entry[2])), None)
    if user:
        uid, gid, home = _number(user[2]), _number(user[3]), user[5]
    else:
        uid, gid, home = _number(user_wish or "0"), 0, "/"
    if uid is None or gid is None:
        raise LaunchError("finding the user", user_wish, "no such user in the container's /etc/passwd")
    if not group_wish:
        groups = _memberships(user[0], group) if user else ()
        return Account(uid, gid, groups, home or "/")
    listed = next((entry for entry in _entries(group, 3) if group_wish in (entry[0], entry[2])), None)
    gid = _number(listed[2] if listed else group_wish)
    if gid is None:
        raise LaunchError("finding the group", group_wish, "no such group in the container's /etc/group")
    return Account(uid, gid, (), home or "/")


def _memberships(name: str, group: str) -> tuple[int, ...]:
    found = (_number(entry[2]) for entry in _entries(group, 4) if name in entry[3].split(","))
    return tuple(gid for gid in found if gid is not None)


def _entries(text: str, fields: int) -> list[list[str]]:
    """The lines that have at least so many fields and a number as their third."""
    lines = (line.strip().split(":") for line in text.splitlines())
    return [line for line in lines if len(line) >= fields and line[0] and _number(line[2]) is not None]


def _number(text: str) -> int | None:
    """The id, or None when the text is none."""
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(_LARGEST_ID))):
        return None
    return int(text) if int(text) <= _LARGEST_ID else None


def _read(path: str, root_fd: int | None) -> str:
    """A file of the container, which may be anything there: only a plain file of sensible size is read."""
    try:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        fd = os.open(path, flags) if root_fd is None else open_in_root(root_fd, path, flags)
    except OSError:
        return ""
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return ""
        return file.read(_LARGEST_FILE).decode(errors="surrogateescape")
