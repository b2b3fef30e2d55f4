"""Find a name in the union of the lowers, or in a part of it: walk down and stop where the union says stop.

The walk ends at the first of: a whiteout, an opaque directory, anything that is not a directory. A directory found
under a file is hidden by that file. A redirect sends the walk to another place in the branches beneath.
"""

from __future__ import annotations

import stat
from typing import NamedTuple

from unionfs import markers
from unionfs.changes.objects import UPPER, Branches, Object, Place

Stack = tuple[Place, ...]
"""The branch directories that a merged directory is made of, top first. Empty: nothing from any lower."""


class Found(NamedTuple):
    """What a name is: its visible object and, for a directory, the branch directories to look into."""

    object: Object
    stack: Stack


def root_stack(branches: Branches, first: int = UPPER + 1) -> Stack:
    """The roots of the lowers from index `first` down to the first opaque one."""
    stack = []
    for index in range(first, len(branches.paths)):
        stack.append(Place(index, b""))
        if branches.root(index).opaque:
            break
    return tuple(stack)


def lookup(branches: Branches, stack: Stack, name: bytes) -> Found | None:
    """What `name` is in the merged directory `stack`; None if it is not there or hidden."""
    top: Object | None = None
    below: list[Place] = []
    for position, place in enumerate(stack):
        entry = branches.entry(place, name)
        if entry.whiteout:
            break
        found = entry.object
        if found is None:
            continue
        if not found.is_dir:
            if top is not None:
                break
            if entry.metacopy:
                rest = stack[position + 1 :]
                found = found._replace(data=metacopy_data(branches, rest, name, entry.redirect, found.place))
            return Found(found, ())
        top = top or found
        if not found.sealed:
            below.append(found.place)
        if entry.redirect is not None:
            below.extend(redirected(branches, stack[position + 1 :], entry.redirect, place.branch + 1))
            break
        if entry.opaque and not found.sealed:
            break
    return Found(top, tuple(below)) if top is not None else None


def names(branches: Branches, stack: Stack) -> set[bytes]:
    """Every name that may be visible in the merged directory; a whiteout may still hide some of them."""
    found: set[bytes] = set()
    for place in stack:
        found.update(name for name in branches.names(place) if not markers.is_reserved(name))
    return found


def redirected(branches: Branches, siblings: Stack, redirect: bytes, first: int) -> Stack:
    """Where a redirected directory continues: a path in the lowers from `first` on, or a name among `siblings`."""
    found = _follow(branches, siblings, redirect, first)
    return found.stack if found is not None and found.object.is_dir else ()


def metacopy_data(branches: Branches, siblings: Stack, name: bytes, redirect: bytes | None, own: Place) -> Place:
    """Where the bytes of a file are of which only the attributes are at `own`; `own` itself if they are lost."""
    found = _follow(branches, siblings, redirect or name, own.branch + 1)
    return found.object.data if found is not None and stat.S_ISREG(found.object.mode) else own


def _follow(branches: Branches, siblings: Stack, redirect: bytes, first: int) -> Found | None:
    components = markers.redirect_components(redirect)
    if components is None:
        return lookup(branches, siblings, redirect)
    found: Found | None = None
    stack = root_stack(branches, first) if first < len(branches.paths) else ()
    for name in components:
        found = lookup(branches, stack, name)
        if found is None:
            return None
        stack = found.stack
    return found
