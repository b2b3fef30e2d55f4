"""List what a container changed, with the ids that may read all of its upper (`unionfs.changes` does the listing).

An upper may hold files of subordinate ids that its user cannot read, so listing is done as root of a user namespace
with the container's ids.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from unionfs import store_files
from unionfs.changes import journal as journals
from unionfs.changes import listing, record
from unionfs.changes.ids import ShownIds
from unionfs.changes.listing import Changes
from unionfs.changes.objects import Branches
from unionfs.containers.complete import complete_upper
from unionfs.containers.errors import ContainerError
from unionfs.containers.ids import id_map_of, ids_outside
from unionfs.containers.record import Container
from unionfs.containers.rootfs import mountpoints
from unionfs.drivers.driver import is_whole
from unionfs.launcher import userns

if TYPE_CHECKING:
    from unionfs.changes.cost import CopiedUp

_LISTED: Final = "changes.json"  # the changes as they were when the command ended, see changes.record


def changes_of(container: Container) -> Changes:
    """What the container changed. Works while it runs. Raises: ContainerError, LaunchError."""
    return record.load(_in_branches(container, lambda branches: record.dump(_list(container, branches))))


def costs_of(container: Container) -> list[CopiedUp]:
    """What its copy-ups have cost, the most expensive first. Raises: as `changes_of`."""
    if is_whole(container.config.rootfs.driver):
        return []  # nothing is copied up one by one: all was there before, copied or shared
    from unionfs.changes import cost

    return cost.load(_in_branches(container, lambda branches: cost.dump(cost.costs(branches))))


def save_list(container: Container, found: Changes) -> None:
    """Keep the list: only what it names is ever put in place, and what it saw of the machine must be so still."""
    new = os.path.join(container.directory, f".{_LISTED}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)
    store_files.write_file(new, record.dump(found))
    os.rename(new, os.path.join(container.directory, _LISTED))


def saved_list(container: Container) -> Changes | None:
    """The list that was kept, if any. Raises: ContainerError if it is broken."""
    path = os.path.join(container.directory, _LISTED)
    try:
        with open(store_files.open_file(path, os.O_RDONLY), "rb") as file:
            return record.load(file.read())
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ContainerError("reading the changes", path, f"bad content: {error}") from error


def branches_of(container: Container, ids: ShownIds) -> Branches:
    """The branches of its union, opened. Raises: OSError."""
    return Branches(
        container.upper,
        container.branches,
        ids=ids,
        hidden=container.facts.hidden,
        skip_unreadable=container.facts.skip_unreadable,
        is_whole=is_whole(container.config.rootfs.driver),
    )


def _in_branches(container: Container, look: Callable[[Branches], bytes]) -> bytes:
    """What `look` returns for the container's branches, called in a process that may read all of them."""
    if journals.is_begun(container.journal):
        raise ContainerError(
            "listing the changes",
            container.name,
            "they are being put in place, or were",
            hint=f"unionfs apply {container.name} carries on; unionfs rm {container.name} forgets them",
        )
    complete_upper(container, "listing the changes")
    if (found := _in_empty_upper(container, look)) is not None:
        return found
    id_map = id_map_of(container)
    ids = ShownIds.inside(container.facts.unmapped_as_root) if id_map else ids_outside(container)

    def body() -> bytes:
        with branches_of(container, ids) as branches:
            return look(branches)

    try:
        return userns.call(id_map, body)
    except OSError as error:
        raise ContainerError.of("listing the changes", error) from error


def _in_empty_upper(container: Container, look: Callable[[Branches], bytes]) -> bytes | None:
    """What `look` returns if the container has left nothing in its upper, which takes no other process; else None."""
    try:
        if os.listdir(container.upper):
            return None
        with branches_of(container, ids_outside(container)) as branches:
            return look(branches)
    except OSError:
        return None


def _list(container: Container, branches: Branches) -> Changes:
    if is_whole(container.config.rootfs.driver) and not os.listdir(container.upper):
        return Changes()  # was never mounted
    found = listing.changes(branches)
    found.changes = listing.without(found.changes, mountpoints(container))
    return found
