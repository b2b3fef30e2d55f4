"""The user namespace of a command that keeps its user's ids, within that of its container.

The container's namespace maps the user to root, which makes its mounts and serves its union. A namespace in it maps
that root back: the command sees the user's own ids, and files of the user as the user's. Other ids and groups show as
nobody, and the kernel checks the user's real ones. See user_namespaces(7).
"""

from __future__ import annotations

import os
import time

from unionfs.id_ranges import IdRange
from unionfs.launcher import userns
from unionfs.launcher.idmap import NamespaceMap
from unionfs.launcher.spec import Caller


def make(caller: Caller) -> int:
    """Return a descriptor of a new user namespace in ours, in which our root is `caller`; -1 if the caller is root
    already.

    Preconditions: those of `userns.fork`; /proc is that of our pid namespace. Raises: LaunchError, OSError.
    """
    if caller.uid == 0:
        return -1
    one = NamespaceMap((IdRange(caller.uid, 0, 1),), (IdRange(caller.gid, 0, 1),), "a command has its user's ids")
    pid = userns.fork(one, 0, _wait)
    try:
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        userns.end(pid)


def _wait() -> int:
    time.sleep(60)  # until it is killed
    return 0
