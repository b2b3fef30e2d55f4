"""Remember the node ids of forgotten nodes, so that file handles stay valid after the kernel's FORGET.

open_by_handle_at(2) names an object by its node id alone, perhaps long after the kernel has forgotten it. So the places
of the last LIMIT forgotten nodes are remembered, and a node that is made again for the same object gets its old id: at
the same place, and a file of several names under any of them. Knows numbers and places only.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

from unionfs.core.node_record import DEAD, FORGOTTEN, IN_LOWER, LINKED

if TYPE_CHECKING:
    from unionfs.core.branch import Branch, BranchDir
    from unionfs.core.node_record import NodeRecord

LIMIT: Final = 1 << 14
"""Forgotten nodes remembered at most: a few megabytes."""


class Nameless(NamedTuple):
    """The place of a file that has lost all names that the kernel knew, and has others: in a lower under `leaf` in
    `place`, or, with a `handle` of its filesystem, in the upper."""

    place: BranchDir
    leaf: bytes
    handle: bytes


class Forgotten(NamedTuple):
    """A forgotten node."""

    parent: int  # its node id; 0 for a nameless file
    name: bytes
    ino: int  # as users see it
    linked: bool  # a file of several names
    nameless: Nameless | None
    slot: int  # of its entry in the record of nodes; 0: none


class HandleTable:
    """The forgotten nodes by node id, by place (node id of the parent, name), and by inode number those of several
    names."""

    def __init__(self, limit: int = LIMIT, record: NodeRecord | None = None) -> None:
        self._limit = limit  # immutable
        self._record = record  # immutable: where the entries of `add` are
        self._nodes: OrderedDict[int, Forgotten] = OrderedDict()  # oldest first
        self._ids: dict[tuple[int, bytes], int] = {}  # place -> node id
        self._linked: dict[int, int] = {}  # inode number -> node id
        if record is not None:
            record.handles_wanted()
        self.taken: dict[int, int] = {}  # node id -> slot of a node that `take` has removed; emptied by NodeTable.add

    def __len__(self) -> int:
        return len(self._nodes)

    def add(
        self,
        nodeid: int,
        parent: int,
        name: bytes,
        ino: int,
        linked: bool = False,
        nameless: Nameless | None = None,
        slot: int = 0,
    ) -> None:
        """Remember a forgotten node whose object may still exist. `slot`: of its entry in the record of nodes."""
        self.drop(nodeid)
        if nameless is None:
            self.drop(self._ids.get((parent, name), 0))
            self._ids[parent, name] = nodeid
        if linked:
            self.drop(self._linked.get(ino, 0))
            self._linked[ino] = nodeid
        record = self._record
        if slot and record is not None:
            record.mark(slot, FORGOTTEN)
        elif nameless is not None and record is not None:
            flags, place = _entry_of(nameless)
            slot = record.put(flags, nodeid, 0, ino, [(0, place)])
            record.compact_if_due()
        self._nodes[nodeid] = Forgotten(parent, name, ino, linked, nameless, slot)
        if len(self._nodes) > self._limit:
            self.drop(next(iter(self._nodes)))

    def drop(self, nodeid: int) -> None:
        """Forget a node, if it is remembered."""
        slot = self._remove(nodeid)
        if slot and self._record is not None:
            self._record.drop(slot)

    def _remove(self, nodeid: int) -> int:
        """As `drop`, but return the slot of the entry in the record, which stays; 0: there is none."""
        node = self._nodes.pop(nodeid, None)
        if node is None:
            return 0
        if node.nameless is None:
            del self._ids[node.parent, node.name]
        if node.linked:
            del self._linked[node.ino]
        return node.slot

    def take(self, parent: int, name: bytes, ino: int, is_file: bool = False) -> int:
        """Remove the record of an object of which a node is being made: of that at this place, or of the file of
        several names with its inode number. Returns the id that it had, 0 if none is remembered. The slot of its entry
        in the record goes to `taken`."""
        if not self._nodes:
            return 0
        nodeid = self._ids.get((parent, name), 0)
        if nodeid and self._nodes[nodeid].ino != ino:
            self.drop(nodeid)
            nodeid = 0
        if not nodeid and is_file:
            nodeid = self._linked.get(ino, 0)
        if slot := self._remove(nodeid):
            self.taken[nodeid] = slot
        return nodeid

    def put_again(self, record: NodeRecord) -> None:
        """Put the entries of all nodes into a new area of the record."""
        self.taken = dict.fromkeys(self.taken, 0)  # they are written when they are added
        for nodeid, node in self._nodes.items():
            if node.slot:
                flags, name = FORGOTTEN | LINKED if node.linked else FORGOTTEN, node.name
                if node.nameless is not None:
                    flags, name = _entry_of(node.nameless)
                slot = record.put(flags, nodeid, 0, node.ino, [(node.parent, name)])
                self._nodes[nodeid] = node._replace(slot=slot)

    def drop_in(self, branch: Branch) -> None:
        """Forget the nameless files of a branch that is being removed."""
        nameless = {nodeid: node.nameless for nodeid, node in self._nodes.items() if node.nameless is not None}
        for nodeid, where in nameless.items():
            if where.place.branch is branch:
                self.drop(nodeid)

    def drop_handles(self) -> None:
        """Forget the files of the upper that are reached by their filesystem's handles."""
        for nodeid in [nodeid for nodeid, node in self._nodes.items() if node.nameless and node.nameless.handle]:
            self.drop(nodeid)

    def find(self, nodeid: int) -> Forgotten | None:
        """Return the forgotten node `nodeid`, or None."""
        return self._nodes.get(nodeid)


def _entry_of(nameless: Nameless) -> tuple[int, bytes]:
    """Return the flags of a nameless file's entry in the record, and the bytes that the entry has instead of a name."""
    if nameless.handle:
        return FORGOTTEN | LINKED | DEAD, nameless.handle
    place = nameless.place
    path = b"/".join((*place.path_components(), nameless.leaf))
    return FORGOTTEN | LINKED | DEAD | IN_LOWER, b"%d/%s" % (place.branch.number, path)
