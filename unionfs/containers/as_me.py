"""The account, environment and directories that a container gets of the user who starts it (`--as-me`). Reads this
process and this machine; changes nothing.

As with Apptainer and Charliecloud, home, working directory, /tmp and /var/tmp are the machine's own, and all else is
the image's.
"""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Final

from unionfs.containers.config import Group, HostUser, Volume

EXCLUDED: Final = ("PATH", "LD_*", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "UNIONFS_*", "_")
"""Patterns of variables that mean something on this machine only: programs, libraries and sockets that a container does
not have. An excluded PATH is replaced by the image's."""

_SHARED: Final = ("/tmp", "/var/tmp")
_SYSTEM: Final = (
    *("/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/sbin", "/sys", "/usr"),
)
"""Directories that are the image's with all that is in them, even if the user's working directory is below one of
them."""
_PARENTS: Final = ("/", "/home", "/media", "/mnt", "/opt", "/run", "/srv", "/var", "/var/lib")
"""Directories that are the image's, unlike the directories in them, which may be the user's."""


def find(workdir: str | None = None, excluded: Iterable[str] = ()) -> HostUser:
    """The user of this process. `workdir`: instead of the current directory; `excluded`: more patterns of variables.

    Raises: OSError if there is no current directory any more.
    """
    uid, gid = os.geteuid(), os.getegid()
    name, full_name, home, shell = _account(uid)
    gids = dict.fromkeys((gid, *os.getgroups()))
    return HostUser(
        name=name,
        uid=uid,
        groups=tuple(Group(_group_name(one), one) for one in gids),
        full_name=full_name,
        home=home,
        shell=shell,
        workdir=workdir or os.getcwd(),
        environment=_environment(home, (*EXCLUDED, *excluded)),
    )


def volumes(me: HostUser, taken: Iterable[str]) -> tuple[Volume, ...]:
    """The user's directories that a container shows at their own paths; none at a path of `taken`, at which the command
    line mounts something."""
    targets = set(taken)
    wanted = (*_SHARED, me.home, dict(me.environment).get("TMPDIR", ""), me.workdir)
    found: list[Volume] = []
    for path in map(os.path.normpath, wanted):
        if path in targets or not may_show(path) or any(_is_within(path, volume.target) for volume in found):
            continue
        found.append(Volume(path, path))
    return tuple(found)


def may_show(path: str) -> bool:
    """Whether a directory of this machine is shown in a container as the user's."""
    if path in _PARENTS or any(_is_within(path, system) for system in _SYSTEM):
        return False
    return path.startswith("/") and os.path.isdir(path)


def _is_within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(f"{directory}/")


def _account(uid: int) -> tuple[str, str, str, str]:
    """Name, full name, home and shell. $HOME has priority, as for a shell."""
    try:
        entry = pwd.getpwuid(uid)
        found = entry.pw_name, entry.pw_gecos, entry.pw_dir or "/", entry.pw_shell or "/bin/sh"
    except KeyError:
        found = f"user{uid}", "", "/", "/bin/sh"
    home = os.environ.get("HOME", "")
    if home.startswith("/") and not {":", "\n"} & set(home):
        return found[0], found[1], os.path.normpath(home), found[3]
    return found


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return f"group{gid}"


def _environment(home: str, excluded: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    kept = {
        name: value for name, value in os.environ.items() if not any(fnmatchcase(name, pattern) for pattern in excluded)
    }
    return tuple({**kept, "HOME": home}.items())
