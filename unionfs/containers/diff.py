"""What a container changed, and putting it in place on this machine: the room `unionfs.changes` for containers.

Shared by the verbs diff, try, apply and rm. Knows containers, id maps and changes. Does not know command lines and does
not print.

An upper may hold files of subordinate ids that its user cannot read. Listing is therefore done as root of a user
namespace with the container's ids; putting in place is done by the process itself, with the rights it has here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from unionfs.changes import apply as applying
from unionfs.changes import check, cost, listing, record
from unionfs.changes.apply import Applied, NotAppliedError, PartlyAppliedError
from unionfs.changes.check import Objection, Plan
from unionfs.changes.cost import CopiedUp
from unionfs.changes.ids import ShownIds
from unionfs.changes.listing import Changes
from unionfs.changes.objects import Branches
from unionfs.changes.owners import OwnerChoice
from unionfs.changes.stage import Progress
from unionfs.cli.errors import CommandError, failed
from unionfs.containers.record import Container
from unionfs.containers.rootfs import mountpoints
from unionfs.containers.store import ContainerStore
from unionfs.containers.volumes import VolumeStore, anonymous_names
from unionfs.drivers.driver import by_name, is_whole
from unionfs.launcher import idmap, mapped
from unionfs.launcher.errors import LaunchError
from unionfs.trees.remove import remove_path

_JOURNAL: Final = "apply.journal"  # in the container's directory: see changes.journal
_LISTED: Final = "changes.json"  # likewise: the changes as they were when the command ended, see changes.record
_NAMED: Final = 20  # objections told one by one


class NotReadyError(CommandError):
    """Changes cannot be put in place now; nothing was done. `objections` say why, by path."""

    def __init__(self, sentence: str, objections: list[Objection], *, hint: str) -> None:
        lines = [f"{os.fsdecode(one.path)}: {one.why}" for one in objections[:_NAMED]]
        if len(objections) > _NAMED:
            lines.append(f"... and {len(objections) - _NAMED} more")
        super().__init__(sentence, hint="\n".join([*lines, *([hint] if hint else [])]))
        self.objections = objections


def changes_of(container: Container) -> Changes:
    """What the container changed. Works while it runs. Raises: CommandError."""
    return record.load(_looked_at(container, lambda branches: record.dump(_list(container, branches))))


def costs_of(container: Container) -> list[CopiedUp]:
    """What its copy-ups have cost, the most expensive first. Works while it runs. Raises: CommandError."""
    if is_whole(container.driver):
        return []  # nothing is copied up one by one: all was there before, copied or shared
    return cost.load(_looked_at(container, lambda branches: cost.dump(cost.costs(branches))))


def _looked_at(container: Container, look: Callable[[Branches], bytes]) -> bytes:
    """What `look` says of the container's branches, looked at by somebody who may read all of them."""
    if applying.is_begun(_journal(container)):
        raise CommandError(
            failed("listing the changes", container.name, "they are being put in place, or were"),
            hint=f"unionfs apply {container.name} carries on; unionfs rm {container.name} forgets them",
        )
    id_map = id_map_of(container)
    ids = ShownIds.inside(container.unmapped_as_root) if id_map else _ids_outside(container)
    try:
        return mapped.call(id_map, lambda: _look(container, ids, look))
    except OSError as error:
        raise CommandError.of("listing the changes", error) from error
    except LaunchError as error:
        raise CommandError(str(error), hint=error.hint) from error


def remember(container: Container, found: Changes) -> None:
    """Keep the list: only what it names is ever put in place, and what it saw of the machine must be so still."""
    aside = os.path.join(container.directory, f".{_LISTED}.{os.getpid()}")
    with open(aside, "wb") as file:
        file.write(record.dump(found))
    os.rename(aside, os.path.join(container.directory, _LISTED))


def remove(store: ContainerStore, container: Container, *, volumes: bool = False) -> None:
    """Remove the container with all it changed, files of subordinate ids included, and with `volumes` those that are
    its alone. Raises: CommandError."""
    try:
        applying.take_back(_journal(container))
        store.remove(container, lambda path: _remove_path(container, path))
        for name in anonymous_names(container) if volumes else ():
            VolumeStore(store.root).remove(name, lambda path: _remove_path(container, path))
    except OSError as error:
        raise CommandError.of("removing the container", error) from error
    except LaunchError as error:
        raise CommandError(str(error), hint=error.hint) from error


def _remove_path(container: Container, path: str) -> None:
    def body() -> bytes:
        by_name(container.driver).remove(path)
        remove_path(path)
        return b""

    mapped.call(id_map_of(container), body)


# -- putting in place --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that is known before anything is done: what would be done, and what speaks against it."""

    container: Container
    found: Changes
    plan: Plan

    def refuse(self, *, force: bool) -> None:
        """Raises: NotReadyError if there is a problem, or a conflict that is not to be overridden."""
        name = self.container.name
        if problems := _distinct(self.plan.problems):
            hint = ""
            if all(problem.privilege for problem in problems) and os.geteuid() != 0:
                root = os.path.dirname(os.path.dirname(self.container.directory))
                hint = f"root may: sudo unionfs apply --root {root} {name}"
            sentence = failed("apply", name, "this cannot be put in place (nothing was done)")
            raise NotReadyError(sentence, problems + _distinct(self.plan.conflicts), hint=hint)
        if (conflicts := _distinct(self.plan.conflicts)) and not force:
            raise NotReadyError(
                failed("apply", name, "this machine was changed meanwhile (nothing was done)"),
                conflicts,
                hint=f"to replace what is there now: unionfs apply --force {name}",
            )


def prepare(container: Container) -> Prepared:
    """Look at everything that would be done. Raises: CommandError, for a container of anything but `/` too."""
    if container.lowers != ("/",):
        why = f"it is a view of {':'.join(container.lowers)}, not of this machine's /"
        raise CommandError(failed("apply", container.name, why))
    if container.is_running():
        raise CommandError(failed("apply", container.name, "it is still running"))
    found = changes_of(container)
    remembered = _remembered(container)
    if remembered is not None:
        found = record.still_there(remembered, found)
    owners = _owners(container)
    try:
        with _branches(container, owners.ids) as branches:
            return Prepared(container, found, check.plan(branches, found, owners, container.began_ns))
    except OSError as error:
        raise CommandError.of("checking the changes", error) from error


def is_begun(container: Container) -> bool:
    """Whether changes were put in place before, wholly or in part."""
    return applying.is_begun(_journal(container))


def put_in_place(prepared: Prepared, *, force: bool, progress: Progress) -> Applied:
    """Do what was prepared. Raises: CommandError, which says what is done and what is not."""
    container, owners = prepared.container, _owners(prepared.container)
    prepared.refuse(force=force)
    _settle(container, progress)
    try:
        with _branches(container, owners.ids) as branches:
            return applying.apply(
                branches,
                prepared.plan,
                prepared.found.unchanged_links,
                owners,
                "/",
                _journal(container),
                force=force,
                progress=progress,
            )
    except NotAppliedError as error:
        why = f"{error.error.strerror} (nothing was changed)"
        raise CommandError(failed("apply", error.path, why)) from error
    except PartlyAppliedError as error:
        raise _partly(container, error) from error
    except OSError as error:
        raise CommandError.of("apply", error) from error


def carry_on(container: Container, *, force: bool, progress: Progress) -> Applied | None:
    """Carry on what was interrupted; None if nothing was. Raises: CommandError."""
    try:
        return applying.resume(_journal(container), force=force, progress=progress)
    except PartlyAppliedError as error:
        raise _partly(container, error) from error
    except BlockingIOError:
        raise CommandError(failed("apply", container.name, "another process is applying it at this moment")) from None
    except OSError as error:
        raise CommandError.of("apply", error) from error


def _settle(container: Container, progress: Progress) -> None:
    """Take back what an apply that was killed while building has left."""
    carry_on(container, force=False, progress=progress)


def _partly(container: Container, error: PartlyAppliedError) -> CommandError:
    stopped = error.left[0]
    done = [f"done: {operation.kind} /{operation.path}" for operation in error.done if operation.says]
    left = [f"not done: {operation.kind} /{operation.path}" for operation in error.left if operation.says]
    hint = f"unionfs apply {container.name} carries on with the rest"
    if not error.error.errno:
        hint += "; with --force it replaces what is there now"
    return CommandError(
        failed(
            "apply",
            f"/{stopped.path}",
            f"{error.error.strerror}; {len(done)} of {len(done) + len(left)} steps are done",
        ),
        hint="\n".join([*done, *left, hint]),
    )


def _distinct(objections: list[Objection]) -> list[Objection]:
    return list(dict.fromkeys(objections))


# -- reading -----------------------------------------------------------------------------------------------------------


def _list(container: Container, branches: Branches) -> Changes:
    if is_whole(container.driver) and not os.listdir(container.upper):
        return Changes()  # was never mounted
    found = listing.changes(branches)
    found.changes = listing.without(found.changes, mountpoints(container))
    return found


def _look(container: Container, ids: ShownIds, look: Callable[[Branches], bytes]) -> bytes:
    with _branches(container, ids) as branches:
        return look(branches)


def _branches(container: Container, ids: ShownIds) -> Branches:
    return Branches(
        container.upper,
        container.branches,
        ids=ids,
        hidden=container.hidden,
        skip_unreadable=container.skip_unreadable,
        is_whole=is_whole(container.driver),
    )


def _remembered(container: Container) -> Changes | None:
    path = os.path.join(container.directory, _LISTED)
    try:
        with open(path, "rb") as file:
            return record.load(file.read())
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise CommandError(failed("reading the changes", path, f"bad content: {error}")) from error


def _owners(container: Container) -> OwnerChoice:
    return OwnerChoice(_ids_outside(container), idmap.is_privileged())


def _ids_outside(container: Container) -> ShownIds:
    if not container.uid_map:
        return ShownIds()
    return ShownIds.outside(container.uid_map, container.gid_map, container.unmapped_as_root)


def id_map_of(container: Container) -> idmap.NamespaceMap | None:
    """The ids to enter a user namespace with, so that everything in the upper can be read; None for root, who can."""
    if idmap.is_privileged() or not container.uid_map:
        return None
    return idmap.NamespaceMap(
        container.uid_map, container.gid_map, "" if len(container.uid_map) > 1 else "it was made with one id"
    )


def _journal(container: Container) -> str:
    return os.path.join(container.directory, _JOURNAL)
