"""User and group ids of containers: those that this user may map, and those of a container's files."""

from __future__ import annotations

import os

from unionfs.changes.ids import ShownIds
from unionfs.containers.record import Container
from unionfs.launcher import idmap


def my_ids() -> idmap.NamespaceMap | None:
    """The id maps of a container of this user; None for root, who needs no user namespace."""
    return None if idmap.is_privileged() else idmap.find(os.geteuid(), os.getegid())


def id_map_of(container: Container) -> idmap.NamespaceMap | None:
    """The id maps of a user namespace in which all of the upper can be read; None for root, who needs none."""
    uid_map, gid_map = container.facts.uid_map, container.facts.gid_map
    if idmap.is_privileged() or not uid_map:
        return None
    return idmap.NamespaceMap(uid_map, gid_map, "" if len(uid_map) > 1 else "it was made with one id")


def shown_ids(container: Container) -> ShownIds:
    """The translation for a process with the ids of `id_map_of`. Call it outside of such a process."""
    return ShownIds.inside(container.facts.unmapped_as_root) if id_map_of(container) else ids_outside(container)


def ids_outside(container: Container) -> ShownIds:
    """The translation from ids on disk, outside of the container's user namespace, to ids in the container."""
    facts = container.facts
    return ShownIds.outside(facts.uid_map, facts.gid_map, facts.unmapped_as_root) if facts.uid_map else ShownIds()
