"""Which directories of the branches are watched for changes that others make, and what the kernel was told of nodes.

A directory is watched, in every branch it is in, from the moment its attributes leave the core: a tree costs nothing
before somebody looks at it. inotify does not say who changed something, and we change the upper ourselves. So the
attributes that each node had when the kernel first heard of it, or after our last change, are kept as one number: what
still has them is no news. Knows nodes and places; what follows from a change is `core.external_changes`'s.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from unionfs.core.attrs import Invalidation
from unionfs.core.branch import BranchDir, Stat
from unionfs.core.lower import LowDir
from unionfs.core.marks import proc_path
from unionfs.core.node import DirNode, Node
from unionfs.syscalls import inotify

FROM_LOWER: Final = 1 << 32
"""Set in a mask beside inotify's bits: a lower has changed, or it is not known what."""

_RECENT_NS: Final = 2_000_000_000
"""A directory changed so short a time ago may have changed between being looked at and being watched."""

Due = dict[bytes, int]
"""Names to be looked at again, with what happened to each; the empty name is the directory itself."""


def print_of(st: Stat) -> int:
    """The attributes that a change leaves a trace in, as one number; the access time is not among them."""
    return hash((st.st_ino, st.st_mode, st.st_nlink, st.st_uid, st.st_gid, st.st_size, st.st_mtime_ns, st.st_ctime_ns))


def _is_redirected(node: DirNode) -> bool:
    low, parent = node.low, node.parent
    return low is not None and parent is not None and (low.name != node.name or low.parent is not parent.low)


class Watcher:
    """The watches of one union. Lives on the union's thread."""

    def __init__(self, tell: Callable[[list[Invalidation]], None], shorten_timeouts: Callable[[int], None]) -> None:
        """`tell` is called with what the kernel is to forget, `shorten_timeouts` (once, with an errno) when some
        directories cannot be watched.

        Raises: OSError with EMFILE.
        """
        self.tell = tell  # immutable
        self._shorten_timeouts = shorten_timeouts  # immutable
        self.fd = inotify.init()  # immutable; readable when there is something to process_events
        self.seen: dict[int, int] = {}  # node id -> print_of it when it was first told, last ours, or last news
        self.due: dict[int, Due] = {}  # node id of a directory -> what to look at; emptied by core.external_changes
        self.unwatched: set[int] = set()  # directories that may change unnoticed
        self.redirected: set[int] = set()  # directories whose lower content is elsewhere in the lowers
        self._nodes: dict[int, set[int]] = {}  # watch -> the directories it is for
        self._watches: dict[int, list[int]] = {}  # the reverse
        self._upper: set[int] = set()  # watches in the upper
        self._watched: dict[int, tuple[BranchDir | None, LowDir | None]] = {}  # node id -> what its watches are for
        self._has_distrusted = False

    def __len__(self) -> int:
        """Directories of branches that are watched."""
        return len(self._nodes)

    def told(self, node: Node, st: Stat) -> None:
        """Attributes of `node` are on their way to the kernel."""
        if node.nodeid not in self.seen:
            self.seen[node.nodeid] = print_of(st)
        if isinstance(node, DirNode):
            watched = self._watched.get(node.nodeid)
            if watched is None or watched[0] is not node.upper or watched[1] is not node.low:
                self.watch(node)

    def changed(self, node: Node, st: Stat) -> None:
        """We have just changed `node` ourselves; the kernel knows."""
        self.seen[node.nodeid] = print_of(st)

    def watch(self, node: DirNode) -> bool:
        """Watch the directory in every branch it is in now, and no others for its sake. Whether these are other
        directories than before."""
        nodeid = node.nodeid
        before = self._watches.pop(nodeid, [])
        self._watched[nodeid] = node.upper, node.low
        self.unwatched.discard(nodeid)
        (self.redirected.add if _is_redirected(node) else self.redirected.discard)(nodeid)
        watches = self._watches[nodeid] = []
        places = ([node.upper] if node.upper is not None else []) + list(node.low.stack if node.low is not None else ())
        for place in places:
            if place.sealed or node.dead:
                continue
            try:
                wd = inotify.watch(self.fd, proc_path(place.fd()))
                watches.append(wd)
                self._nodes.setdefault(wd, set()).add(nodeid)
                if place.branch.writable:
                    self._upper.add(wd)
                if wd not in before and place.stat().st_ctime_ns > time.time_ns() - _RECENT_NS:
                    self.look_at(nodeid, b"", FROM_LOWER)
            except OSError as exc:
                self._cannot_watch(nodeid, exc)
        for wd in before:
            if wd not in watches:
                self._leave(wd, nodeid)
        return watches != before

    def _cannot_watch(self, nodeid: int, exc: OSError) -> None:
        if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            self.look_at(nodeid, b"", FROM_LOWER)  # gone or replaced while we were looking
            return
        self.unwatched.add(nodeid)
        if not self._has_distrusted:
            self._has_distrusted = True
            self._shorten_timeouts(exc.errno or errno.EIO)

    def _leave(self, wd: int, nodeid: int) -> None:
        nodes = self._nodes.get(wd)
        if nodes is None:
            return
        nodes.discard(nodeid)
        if not nodes:
            self._ended(wd)
            inotify.unwatch(self.fd, wd)

    def _ended(self, wd: int) -> set[int]:
        self._upper.discard(wd)
        return self._nodes.pop(wd, set())

    def forgotten(self, nodeid: int) -> None:
        """The node is no more."""
        self.seen.pop(nodeid, None)
        if self._watched.pop(nodeid, None) is not None:
            self.unwatched.discard(nodeid)
            self.redirected.discard(nodeid)
            self.due.pop(nodeid, None)
            for wd in self._watches.pop(nodeid, ()):
                self._leave(wd, nodeid)

    def look_at(self, nodeid: int, name: bytes, mask: int) -> None:
        """Have `name` in a directory, or with an empty name the directory itself, looked at again."""
        names = self.due.setdefault(nodeid, {})
        names[name] = names.get(name, 0) | mask

    def gather(self) -> bool:
        """Put what inotify has heard of into `due`. True: something may have been missed, look at everything."""
        overflow = False
        while events := inotify.read(self.fd):
            for wd, mask, name in events:
                if mask & inotify.Q_OVERFLOW:
                    overflow = True
                    continue
                where = 0 if wd in self._upper else FROM_LOWER
                nodes = self._nodes.get(wd, ())
                if mask & inotify.IGNORED:
                    nodes = self._ended(wd)
                for nodeid in nodes:
                    self.look_at(nodeid, name, mask | where)
        return overflow

    def close(self) -> None:
        """End all watches."""
        with suppress(OSError):
            os.close(self.fd)
