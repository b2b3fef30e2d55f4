"""A view: the lowers of a mounted union as a read-only union of their own, served by the same daemon.

A program that compares a union with the stack below it may skip every object that has the same inode number in both
listings, with all objects below it (podman does, where st_dev is equal, too). So the listings of a view show the
union's number for a name that is the untouched lower object in the union, and that number with VIEW_MARK flipped for
all other names: those that the upper has at that path, and those below a renamed directory. The upper has every name of
a copied-up file, since it is completed (core.complete) before anything is listed. st_ino is always the flipped number,
so attributes never change and can be cached.

Shares the lowers, opened and cached, with the union. Has nodes of its own; the ids that it gives out have the bit VIEW.
The ids that it takes do not have it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import Final

from unionfs.core import complete, lookup
from unionfs.core.attrs import ROOT, VIEW, VIEW_MARK, DirEntry, Entry, make
from unionfs.core.node import DirNode
from unionfs.core.owner_override import OwnerOverride
from unionfs.core.union import Union
from unionfs.core.union_state import UnionState, refuse

_DOTS: Final = 2  # the cookies of "." and ".."


class View(Union):
    """The view of a union's lowers."""

    def __init__(self, viewed: Union) -> None:
        """Make the view of the lowers of `viewed`, which stays open as long as the view is used."""
        self._viewed = viewed._tree  # immutable
        self._tree = UnionState(viewed.options._replace(upper=None, work=None, overrides=""), self._viewed)
        self._nodes = self._tree.nodes
        self._given_up: set[bytes] = set()  # keys of the hard-link index whose names could not be completed

    def root_entry(self) -> Entry:
        """Return the root directory as the result of a lookup."""
        return make(Entry, (ROOT | VIEW, self.getattr(ROOT)))

    def find(self, parent: int, name: bytes, is_listed: bool = False) -> Entry | None:
        """See Union.find."""
        found = Union.find(self, parent, name, is_listed)
        return None if found is None else make(Entry, (found.nodeid | VIEW, found.attrs))

    def keep_handles(self) -> None:
        """Do nothing: a view has no file handles, see `lookup_handle`."""

    def lookup_handle(self, nodeid: int, parent: bool = False) -> Entry:
        """Raise ESTALE, so that a process that cannot see the view reaches nothing in it by a handle."""
        refuse(errno.ESTALE)

    def readdir(self, nodeid: int, cookie: int) -> Iterator[DirEntry]:
        """See Union.readdir. The numbers are those of the viewed union for objects that it shows unchanged from the
        lowers at the time of the call; other numbers are flipped."""
        changed = self._changed_names(self._nodes.directory(nodeid))
        for entry in Union.readdir(self, nodeid, cookie):
            name, position, ino, kind = entry
            if changed is None or position <= _DOTS or name in changed:
                yield entry
            else:
                yield make(DirEntry, (name, position, ino ^ VIEW_MARK, kind))

    def _changed_names(self, directory: DirNode) -> set[bytes] | None:
        """Return the names in a directory of the view that the upper of the viewed union has at the same path; None if
        anything may be different there."""
        tree = self._viewed
        twin: DirNode | None = None
        try:
            if not self.complete_viewed():
                return None
            if tree.lowers is not self._tree.lowers:  # the union has other lowers by now
                return None
            twin = self._twin(directory)
            if twin is None or twin.low is None or directory.low is None:
                return None
            if twin.low.path_components() != directory.low.path_components():  # renamed, with all that is below it
                return None
            if twin.upper is None:
                return set()
            if twin.up_names is not None:
                return set(twin.up_names)
            with OwnerOverride(twin.upper):
                return {name for name, _kind, _ino in tree.lowers.entries(twin.upper, [])}
        except OSError:
            return None
        finally:
            if twin is not None:
                tree.drop_unused(twin)

    def complete_viewed(self) -> bool:
        """Give the upper of the viewed union the names of copied-up files that it lacks. Returns whether it has all.
        After a failure it is not tried again before another file was copied up, because the search reads all
        directories. Raises OSError."""
        links = self._viewed.links_or_none
        missing = set(links.incomplete()) if links is not None else set()
        if not missing <= self._given_up:
            self._given_up = missing
            if complete.complete(self._viewed):
                self._given_up = set()
        return not missing or not self._given_up

    def when_incomplete(self, call: Callable[[], None]) -> None:
        """Have `call` called whenever the upper of the viewed union may have begun to lack names of copied-up files:
        now, if it lacks some, and during later operations, on the union's thread."""
        links = self._viewed.links_or_none
        if links is None:
            return
        links.on_change = call
        if links.incomplete():
            call()

    def _twin(self, directory: DirNode) -> DirNode | None:
        """Return the directory that the viewed union has at the path of `directory`; None if it has none there. The
        caller drops the node if it is unused. Raises what a lookup raises."""
        names: list[bytes] = []
        above: DirNode | None = directory
        while above is not None and above.parent is not None:
            names.append(above.name)
            above = above.parent
        tree = self._viewed
        at = tree.root
        for name in reversed(names):
            node = at.children.get(name)
            if node is None:
                try:
                    found = lookup.find(tree, at, name)
                except OSError:
                    tree.drop_unused(at)
                    raise
                node = found.node if found is not None else None
            if not isinstance(node, DirNode):
                tree.drop_unused(at if node is None else node)
                return None
            at = node
        return at


def root_descriptors(union: Union) -> list[int]:
    """Return O_PATH descriptors of the roots of a union's lowers, top first. They belong to the union."""
    return [branch.root.fd() for branch in union._tree.lowers.branches]
