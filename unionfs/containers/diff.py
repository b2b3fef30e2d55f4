"""List the changes of a container, with ids that may read all of its upper (`unionfs.changes` does the listing).

An upper may hold files of subordinate ids that its user cannot read, so listing is done as root of a user namespace
with the container's ids.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from unionfs import store_files
from unionfs.changes import compare, listing, record
from unionfs.changes import journal as journals
from unionfs.changes.ids import ShownIds
from unionfs.changes.listing import Changes
from unionfs.changes.objects import Branches
from unionfs.containers.complete import complete_upper
from unionfs.containers.errors import ContainerError
from unionfs.containers.ids import id_map_of, ids_outside, shown_ids
from unionfs.containers.record import Container
from unionfs.containers.rootfs import image_file_shown, mountpoints, read_upper
from unionfs.drivers.driver import is_whole
from unionfs.launcher import userns

if TYPE_CHECKING:
    from unionfs.changes.cost import CopiedUp

_LISTED: Final = "changes.json"  # the list of changes, as `unionfs try` showed it (changes.record)


def changes_of(container: Container) -> Changes:
    """The changes of a container, running or not. Raises: ContainerError, LaunchError."""
    return record.load(_in_branches(container, lambda branches: record.dump(_list(container, branches))))


def costs_of(container: Container) -> list[CopiedUp]:
    """The cost of its copy-ups, the most expensive first. Raises: as `changes_of`."""
    if is_whole(container.config.rootfs.driver):
        return []  # there is no copy-up: these drivers copy or share whole trees
    from unionfs.changes import cost

    return cost.load(_in_branches(container, lambda branches: cost.dump(cost.costs(branches))))


def digests(container: Container, found: Changes) -> dict[bytes, str]:
    """The SHA-256 of each regular file with new content, as sha256:HEX, by path. Raises: as `changes_of`."""

    def look(branches: Branches) -> bytes:
        told = {}
        for change in found.changes:
            new = change.new
            if new is not None and stat.S_ISREG(new.mode) and (change.old is None or compare.CONTENT in change.what):
                with open(branches.open_data(new.data), "rb") as file:
                    told[os.fsdecode(change.path)] = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        return json.dumps(told).encode()

    told = json.loads(_in_branches(container, look)) if found.changes else {}
    return {os.fsencode(path): digest for path, digest in told.items()}


def save_list(container: Container, found: Changes) -> None:
    """Store the list: `apply` applies only its changes, and only if the machine's files are as in the list. The list is
    valid only for the container's present lowers, since it names branches by their positions."""
    new = os.path.join(container.directory, f".{_LISTED}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)
    store_files.write_file(new, json.dumps(container.config.rootfs.lowers).encode() + b"\n" + record.dump(found))
    os.rename(new, os.path.join(container.directory, _LISTED))


def forget_list(container: Container) -> None:
    """Remove the stored list: the branches that it names have other positions now."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(container.directory, _LISTED))


def saved_list(container: Container) -> Changes | None:
    """The stored list, if it is valid for the container's lowers. Raises: ContainerError if it is broken."""
    path = os.path.join(container.directory, _LISTED)
    try:
        with open(store_files.open_file(path, os.O_RDONLY), "rb") as file:
            lowers, _, rest = file.read().rpartition(b"\n")  # earlier versions stored no lowers
        is_valid = not lowers or tuple(json.loads(lowers)) == container.config.rootfs.lowers
        return record.load(rest) if is_valid else None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ContainerError("reading the changes", path, f"bad content: {error}") from error


def branches_of(container: Container, ids: ShownIds, *, since_fork: bool = False) -> Branches:
    """Open the branches of its union. `since_fork`: only changes since the fork count. Raises: OSError."""
    kept = container.inherited if since_fork and container.inherited else len(container.base)
    never_run = not os.path.lexists(container.mountpoint_lower)
    return Branches(
        container.upper,
        container.config.rootfs.lowers if never_run else container.branches,
        ids=ids,
        hidden=container.facts.hidden,
        skip_unreadable=container.facts.skip_unreadable,
        is_whole=is_whole(container.config.rootfs.driver),
        frozen=max(0, len(container.config.rootfs.lowers) - kept),
    )


def refuse_applied(container: Container, what: str) -> None:
    """Raises: ContainerError if some or all changes are applied: then the upper does not hold them any more. `what`:
    the verb."""
    if journals.is_begun(container.journal):
        hint = f"unionfs apply {container.name} applies the rest; unionfs rm {container.name} discards it"
        raise ContainerError(what, container.name, "some or all of its changes are already applied", hint=hint)


def _in_branches(container: Container, look: Callable[[Branches], bytes]) -> bytes:
    """Call `look` with the container's branches in a process that may read all of them, and return its result."""
    refuse_applied(container, "listing the changes")
    complete_upper(container, "listing the changes")
    read_upper(container)
    if (found := _in_empty_upper(container, look)) is not None:
        return found
    ids = shown_ids(container)

    def body() -> bytes:
        with image_file_shown(container), branches_of(container, ids) as branches:
            return look(branches)

    try:
        return userns.call(id_map_of(container), body)
    except OSError as error:
        raise ContainerError.of("listing the changes", error) from error


def _in_empty_upper(container: Container, look: Callable[[Branches], bytes]) -> bytes | None:
    """The result of `look` if the container's upper is empty, without another process; else None."""
    try:
        if container.frozen or container.config.rootfs.file is not None or os.listdir(container.upper):
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
