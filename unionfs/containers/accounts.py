"""The passwd and group files of a container that runs as its user: those of its root filesystem, with the user's
entries first, so that name and ids lead to the user even if the image gives them to other users.

CONTAINER/etc/{passwd,group}   written at each start, bound to /etc/NAME: the root filesystem is not changed
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

from unionfs import store_files
from unionfs.containers.config import HostUser
from unionfs.containers.record import Container
from unionfs.launcher import users
from unionfs.launcher.errors import LaunchError
from unionfs.launcher.spec import Bind
from unionfs.trees.open_beneath import open_in_root

DIRECTORY: Final = "etc"


def binds(container: Container) -> tuple[Bind, ...]:
    """The bind mounts of these files; none unless the container runs as its user."""
    if container.config.me is None:
        return ()
    return tuple(
        Bind(os.path.join(container.directory, DIRECTORY, name), f"/etc/{name}") for name in ("passwd", "group")
    )


def write(container: Container, me: HostUser) -> None:
    """Write the files that `binds` names. Preconditions: the root filesystem is mounted.

    Raises: LaunchError.
    """
    try:
        root_fd = os.open(container.merged, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if not _has_file(root_fd, me.shell):
                me = me._replace(shell="/bin/sh")
            texts = (passwd(me, users.read("/etc/passwd", root_fd)), group(me, users.read("/etc/group", root_fd)))
        finally:
            os.close(root_fd)
        os.makedirs(os.path.join(container.directory, DIRECTORY), 0o755, exist_ok=True)
        for bind, text in zip(binds(container), texts, strict=True):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(bind.source)
            store_files.write_file(bind.source, text.encode(errors="surrogateescape"), 0o644)
    except OSError as error:
        raise LaunchError.of("writing the container's accounts", error) from error


def _has_file(root_fd: int, path: str) -> bool:
    try:
        os.close(open_in_root(root_fd, path, os.O_PATH | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def passwd(me: HostUser, text: str) -> str:
    """The passwd file `text` with the user's line first. The line of another user of that name is removed; a line with
    another name and the same uid stays, after the user's. Pure."""
    line = ":".join((me.name, "x", str(me.uid), str(me.groups[0].gid), me.full_name, me.home, me.shell))
    return _with_first((line,), {me.name}, text)


def group(me: HostUser, text: str) -> str:
    """The group file `text` with the user's groups first, as `passwd`. Pure."""
    lines = [f"{one.name}:x:{one.gid}:{me.name}" for one in me.groups]
    return _with_first(lines, {one.name for one in me.groups}, text)


def _with_first(lines: tuple[str, ...] | list[str], names: set[str], text: str) -> str:
    others = (line for line in text.splitlines() if line.partition(":")[0] not in names)
    return "\n".join([*lines, *others, ""])
