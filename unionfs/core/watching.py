"""Watch the branches' directories for external changes, and remember the attributes that the kernel has of each node.

A directory is watched, in every branch that has it, once its attributes have left the core: a tree costs nothing before
it is used. inotify does not say which process made a change, and the daemon changes the upper itself. So a fingerprint
of the attributes that each node had when the kernel first got them, or after our last change, is kept: an object that
still has it has not changed. Knows nodes and places; the consequences of a change are `core.external_changes`'s.
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
"""Set in a mask beside inotify's bits: a lower has changed, or the kind of change is unknown."""

_RECENT_NS: Final = 2_000_000_000
"""A directory whose ctime is less than this ago may have changed between being read and being watched."""

Due = dict[bytes, int]
"""Names to check again, with the event mask of each; the empty name is the directory itself."""


def fingerprint(st: Stat) -> int:
    """Return a hash of the attributes that changes modify; the access time is not among them."""
    return hash((st.st_ino, st.st_mode, st.st_nlink, st.st_uid, st.st_gid, st.st_size, st.st_mtime_ns, st.st_ctime_ns))


def _is_redirected(node: DirNode) -> bool:
    low, parent = node.low, node.parent
    return low is not None and parent is not None and (low.name != node.name or low.parent is not parent.low)


class Watcher:
    """The watches of one union. Lives on the union's thread."""

    def __init__(
        self, invalidate: Callable[[list[Invalidation]], None], shorten_timeouts: Callable[[int], None]
    ) -> None:
        """Open the inotify descriptor. `invalidate` is called with the invalidations for the kernel, `shorten_timeouts`
        (once, with an errno) when some directories cannot be watched.

        Raises: OSError with EMFILE.
        """
        self.invalidate = invalidate  # immutable
        self._shorten_timeouts = shorten_timeouts  # immutable
        self.fd = inotify.init()  # readable when there are events for `process_events`; changed by pause and resume
        self.seen: dict[int, int] = {}  # node id -> its fingerprint when last sent or changed
        self.due: dict[int, Due] = {}  # node id of a directory -> names to check; emptied by core.external_changes
        self.unwatched: set[int] = set()  # directories that may change unnoticed
        self.redirected: set[int] = set()  # directories whose lower content is elsewhere in the lowers
        self._nodes: dict[int, set[int]] = {}  # watch -> the directories it is for
        self._watches: dict[int, list[int]] = {}  # the reverse
        self._upper: set[int] = set()  # watches in the upper
        self._watched: dict[int, tuple[BranchDir | None, LowDir | None]] = {}  # node id -> what its watches are for
        self._has_shortened_timeouts = False

    def __len__(self) -> int:
        """Return the number of watched branch directories."""
        return len(self._nodes)

    def track(self, node: Node, st: Stat) -> None:
        """Remember the attributes of `node`, which are being sent to the kernel, and watch it if it is a directory."""
        if node.nodeid not in self.seen:
            self.seen[node.nodeid] = fingerprint(st)
        if isinstance(node, DirNode):
            watched = self._watched.get(node.nodeid)
            if watched is None or watched[0] is not node.upper or watched[1] is not node.low:
                self.watch(node)

    def record_own_change(self, node: Node, st: Stat) -> None:
        """Remember the attributes of `node` after a change of our own, so that it is not reported as external."""
        self.seen[node.nodeid] = fingerprint(st)

    def watch(self, node: DirNode) -> bool:
        """Watch the directory in every branch that has it now, and end its other watches. Returns whether the watched
        directories differ from before."""
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
                    self.schedule_check(nodeid, b"", FROM_LOWER)
            except OSError as exc:
                self._cannot_watch(nodeid, exc)
        for wd in before:
            if wd not in watches:
                self._leave(wd, nodeid)
        return watches != before

    def _cannot_watch(self, nodeid: int, exc: OSError) -> None:
        if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            self.schedule_check(nodeid, b"", FROM_LOWER)  # removed or replaced meanwhile
            return
        self.unwatched.add(nodeid)
        self._limit_hit(exc.errno or errno.EIO)

    def _limit_hit(self, code: int) -> None:
        if not self._has_shortened_timeouts:
            self._has_shortened_timeouts = True
            self._shorten_timeouts(code)

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

    def forget(self, nodeid: int) -> None:
        """Drop all state of a node that no longer exists, and end its watches."""
        self.seen.pop(nodeid, None)
        if self._watched.pop(nodeid, None) is not None:
            self.unwatched.discard(nodeid)
            self.redirected.discard(nodeid)
            self.due.pop(nodeid, None)
            for wd in self._watches.pop(nodeid, ()):
                self._leave(wd, nodeid)

    def schedule_check(self, nodeid: int, name: bytes, mask: int) -> None:
        """Schedule a check of `name` in a directory, or of the directory itself if the name is empty."""
        names = self.due.setdefault(nodeid, {})
        names[name] = names.get(name, 0) | mask

    def gather(self) -> bool:
        """Read the pending inotify events into `due`. Returns whether events were lost, so that all must be checked."""
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
                    self.schedule_check(nodeid, name, mask | where)
        return overflow

    def pause(self) -> None:
        """End all watches, until `resume` in a process that this one forks: only one process at a time watches."""
        os.close(self.fd)
        self.fd = -1
        self.seen, self.due, self.unwatched, self.redirected = {}, {}, set(), set()
        self._nodes, self._watches, self._upper, self._watched = {}, {}, set(), {}

    def resume(self) -> None:
        """Open a new inotify descriptor without watches. If that is impossible (EMFILE), no directory can be
        watched."""
        try:
            self.fd = inotify.init()
        except OSError as exc:
            self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)  # is never readable, and watches nothing
            self._limit_hit(exc.errno or errno.EIO)

    def close(self) -> None:
        """End all watches."""
        with suppress(OSError):
            os.close(self.fd)
