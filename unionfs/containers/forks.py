"""Forks: containers on the same frozen branches as the container that they were forked from.

A fork costs a record and an empty upper, whatever the size of the branches. Branches belong to the container whose
upper they were; ContainerStore keeps them as long as any container has them.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

from unionfs import detach
from unionfs.changes import listing
from unionfs.changes.merging import own
from unionfs.containers import freeze, record
from unionfs.containers.complete import complete_upper
from unionfs.containers.diff import branches_of
from unionfs.containers.errors import ContainerError
from unionfs.containers.ids import id_map_of, shown_ids
from unionfs.containers.record import Container
from unionfs.containers.remove import remove_leftovers, take_back
from unionfs.containers.rootfs import mountpoints, note_mountpoints
from unionfs.containers.store import ContainerStore
from unionfs.launcher import userns

_BLOCK: Final = 512  # of st_blocks (stat(2))


def fork(
    container: Container, name: str = "", command: Sequence[str] = (), warn: freeze.Warn = lambda _: None
) -> Container:
    """Make a second container on the present branches of this one. `command`: instead of its own. Raises:
    ContainerError, LaunchError, OSError."""
    with ContainerStore(container.root).changing(container) as current:
        return _fork(current, name, command, warn)


def _fork(container: Container, name: str, command: Sequence[str], warn: freeze.Warn) -> Container:
    """Preconditions: within ContainerStore.changing; otherwise another freeze could move the changes meanwhile."""
    freeze.check(container, "fork")
    ContainerStore(container.root).check_name(name)  # checked before the container is frozen
    if freeze.has_changes(container):
        container = freeze.freeze_held(container, warn=warn)
    config = container.config._replace(remove=False)
    if command:
        config = config._replace(process=config.process._replace(command=tuple(command)), entrypoint=())
    made = record.new(container.root, config, name, container.facts)
    state = made.state._replace(began_ns=container.state.began_ns)
    made = made._replace(parent=container.id, inherited=len(config.rootfs.lowers), state=state)
    made = ContainerStore(container.root).add(made, lambda upper: _make_alike(container, upper))
    note_mountpoints(made, mountpoints(container))
    return made


def _make_alike(container: Container, upper: str) -> None:
    """Give a new upper the owner, mode, times and attributes of the container's."""
    st = os.stat(container.upper)
    if (st.st_uid, st.st_gid) == (os.geteuid(), os.getegid()) and not os.listxattr(container.upper):
        os.chmod(upper, st.st_mode & 0o7777)
        os.utime(upper, ns=(st.st_atime_ns, st.st_mtime_ns))
        return

    def body() -> bytes:
        from unionfs.core.freeze import copy_attributes  # late: it imports most of the core

        fds = [os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for path in (container.upper, upper)]
        copy_attributes(*fds)
        return b""

    userns.call(id_map_of(container), body)


class ForkRow(NamedTuple):
    """A container among its forks."""

    container: Container
    depth: int  # 0: it was not forked, or its parent was removed
    changed: dict[str, int]  # number of paths by kind (A, C, D), since it was forked
    disk: int  # bytes of the branches that are its own


def tree(root: str | None) -> list[ForkRow]:
    """All containers that were forked, or have forks, each below the one that it was forked from. Raises:
    ContainerError, LaunchError."""
    found = ContainerStore(root).list()
    known = {one.id for one in found}
    below: dict[str, list[Container]] = {}
    for one in found:
        below.setdefault(one.parent if one.parent in known else "", []).append(one)
    rows: list[ForkRow] = []

    def add(one: Container, depth: int) -> None:
        try:
            rows.append(_row(one, depth))
        except ContainerError:
            if os.path.lexists(one.directory):
                raise
            return  # it was removed meanwhile
        for child in below.get(one.id, ()):
            add(child, depth + 1)

    for one in below.get("", ()):
        if one.parent or one.id in below:
            add(one, 0)
    return rows


def _row(container: Container, depth: int) -> ForkRow:
    complete_upper(container, "listing the changes")
    id_map, ids = id_map_of(container), shown_ids(container)

    def body() -> bytes:
        with branches_of(container, ids, since_fork=True) as branches:
            changes = own(listing.without(listing.changes(branches).changes, mountpoints(container)))
        kinds = Counter(change.kind for change in changes)
        places = [path for path in (container.upper, *container.frozen) if os.path.dirname(path) == container.directory]
        return json.dumps([kinds, sum(_disk_usage(path) for path in places)]).encode()

    try:
        changed, disk = json.loads(userns.call(id_map, body))
    except OSError as error:
        raise ContainerError.of("listing the changes", error, subject=container.name) from error
    return ForkRow(container, depth, changed, disk)


def _disk_usage(path: str) -> int:
    """The bytes that a directory tree takes on its filesystem."""
    seen: dict[int, int] = {}
    for _, _, names, fd in os.fwalk(path):
        st = os.fstat(fd)
        seen[st.st_ino] = st.st_blocks * _BLOCK
        for name in names:
            st = os.stat(name, dir_fd=fd, follow_symlinks=False)
            seen[st.st_ino] = st.st_blocks * _BLOCK
    return sum(seen.values())


def drop(container: Container) -> None:
    """Remove a container at once; its files are deleted by a process that goes on afterwards. Raises: ContainerError,
    OSError."""
    store = ContainerStore(container.root)
    take_back(container)
    store.hide(container)
    if os.fork():
        return
    try:
        os.setsid()
        detach.detach(set())()
        remove_leftovers(store, container)
    finally:
        os._exit(0)
