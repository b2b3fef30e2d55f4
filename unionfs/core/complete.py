"""Complete the upper: give it the names of copied-up files that still show through from a lower, and the data that are
still in a lower.

A lower file with several names is copied up under one of them; the index (core.hardlinks) leads its other names to the
copy. A reader of the upper that does not know the index would find the lower's file there. So the union gives the upper
all these names when it is closed and when its root directory is synced (fsync(2)); if the daemon was killed, readers of
the upper do this (`complete_upper`).

Files that were copied up without all of their data (core.partial) get their data on request: by `unionfs complete`, by
readers of the upper, at the end of a container.

The names are found by reading the directories of the lowers, which is done only while the index counts names that the
upper lacks.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from typing import Final

from unionfs.core import copyup, fill, hardlinks, inode_flags, inodes, lookup, marks, placement
from unionfs.core.attrs import WHOLE
from unionfs.core.branch import Branch
from unionfs.core.hardlinks import HardLinks
from unionfs.core.lower import LowDir
from unionfs.core.node import DirNode, FileNode
from unionfs.core.options import Options
from unionfs.core.owner_override import OwnerOverride
from unionfs.core.staging import log_warning
from unionfs.core.union_state import UnionState

_HOPELESS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)  # the next name would fail as well
_ASK_AGAIN_S: Final = 0.05
_WHOLE_S: Final = 30.0
"""Seconds after a request for complete data during which the mounted union copies up no file without all of its data:
the process that asked reads the upper meanwhile, or freezes it."""


def complete(tree: UnionState) -> bool:
    """Link the missing names into the upper. Returns whether it has all of them: False where the filesystem refuses a
    link, which the next call tries again, and while another daemon uses the upper or if one has used it: a daemon whose
    union was unmounted lazily, or that still serves a view, would link names that others have given to other files.
    A union that is opened afterwards completes it (`complete_upper`). Raises OSError if the work directory cannot be
    locked."""
    links = tree.links_or_none
    if links is None or not links.incomplete():
        return True
    lock = tree.staging.lock_out_others()
    if lock is None:
        return False
    with lock:
        return tree.staging.was_alone() and _Search(tree, links).run()


def complete_upper(options: Options, patience_s: float = 10.0, *, with_data: bool = True) -> bool:
    """Complete the upper of a union that is not mounted: names and, unless not `with_data`, data. Waits up to
    `patience_s` seconds for its daemon to end. Returns whether it is complete. Raises OptionError, OSError; EIO if data
    are missing."""
    deadline = time.monotonic() + patience_s
    while True:
        if options.work is None or hardlinks.is_complete(options.work):
            return True
        tree = UnionState(options)
        try:
            if complete(tree) and (not with_data or complete_data(tree)):
                return True
            if not tree.upper_in_use or time.monotonic() > deadline:
                return False
        finally:
            tree.close()
        time.sleep(_ASK_AGAIN_S)


def complete_data(tree: UnionState) -> bool:
    """Bring all data of partial files to the upper, of a union that is not mounted. Returns whether it is done: False
    while another daemon uses the upper. Raises OSError; EIO if data are missing."""
    if tree.links_or_none is None or not tree.staging.has_partial():
        return True
    is_done, failed = _complete_data(tree)
    if failed is not None:
        raise failed  # raised here: the traceback of the caught error would hold the lock
    return is_done


def _complete_data(tree: UnionState) -> tuple[bool, OSError | None]:
    lock = tree.staging.lock_out_others()
    if lock is None:
        return False, None
    failed: OSError | None = None
    with lock:
        for node in partial_files(tree):
            try:
                fill.prepare(tree, node, None, WHOLE)
            except OSError as exc:
                path = placement.path_of(node)
                log_warning("%r cannot be completed: %s", path, str(exc))  # a record would hold frames, and the lock
                failed = OSError(exc.errno, exc.strerror or str(exc), os.fsdecode(path))
                if exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                    break
        if failed is None:
            tree.staging.withdraw_partial()
    return True, failed


class PartialSearch:
    """A search for the partial files of a mounted union, one at each call."""

    def __init__(self) -> None:
        self._found: Iterator[FileNode] | None = None
        self._has_found = False  # in this pass
        self._count = 0  # of the files that were copied up without data when the pass began

    def next(self, tree: UnionState) -> int | None:
        """Return the node id of the next file, which is to be completed before the next call; None, once, when there is
        no more. For a while afterwards files are copied up whole, so that the caller can read the upper. Raises
        OSError."""
        tree.whole_until = time.monotonic() + _WHOLE_S
        if tree.links_or_none is None or not tree.staging.has_partial():
            return None
        while True:
            if self._found is None:
                self._found, self._has_found, self._count = partial_files(tree), False, tree.staging.partial_count
            try:
                node = next(self._found, None)
            except BaseException:
                self._found = None
                raise
            if node is not None:
                self._has_found = True
                return node.nodeid
            self._found = None
            if not self._has_found:  # else another pass sees whether they are whole now
                if tree.staging.partial_count == self._count:
                    tree.staging.withdraw_partial()
                return None


def partial_files(tree: UnionState) -> Iterator[FileNode]:
    """Find the partial files of the upper. Between two results they may be changed, and other requests served. Raises
    OSError."""
    pending = [tree.root]
    tree.root.nlookup += 1  # the node of the present directory must not be forgotten
    try:
        while pending:
            here = pending.pop()
            try:
                if here.upper is None or here.dead:
                    continue
                for name, code in list(tree.up_names(here).items()):
                    kind = (code & 0xF) << 12
                    if kind == stat.S_IFDIR:
                        found = lookup.find(tree, here, name)
                        if found is not None and isinstance(found.node, DirNode):
                            found.node.nlookup += 1
                            pending.append(found.node)
                    elif kind == stat.S_IFREG:
                        yield from _partial_file(tree, here, name)
            finally:
                here.nlookup -= 1
                tree.drop_unused(here)
    finally:
        for left in pending:
            left.nlookup -= 1
            tree.drop_unused(left)


def _partial_file(tree: UnionState, here: DirNode, name: bytes) -> Iterator[FileNode]:
    up = here.upper
    try:
        if up is None or not marks.is_metacopy(up, name):
            return
        found = lookup.find(tree, here, name)
    except FileNotFoundError:
        return  # removed meanwhile
    if found is None or not isinstance(found.node, FileNode):
        return
    node = found.node
    node.nlookup += 1
    try:
        if node.links is not None and node.links.partial is not None:
            yield node
    finally:
        node.nlookup -= 1
        tree.drop_unused(node)


class _Search:
    """A walk through the directories of the union. A directory that only the upper has may contain a renamed one with
    lowers."""

    def __init__(self, tree: UnionState, links: HardLinks) -> None:
        self.tree = tree
        self.links = links
        self.inos = {inodes.ino_of_key(key) for key in links.incomplete()}
        self.lists_inos: dict[Branch, bool] = {}  # whether a branch lists the inode numbers that stat(2) gives
        self.failed: OSError | None = None

    def run(self) -> bool:
        """Walk until the upper has every name. Returns whether it has."""
        pending = [self.tree.root]
        while pending and self.links.incomplete():
            here = pending.pop()
            try:
                pending += self._directory(here)
            except OSError as exc:
                self.failed = exc.with_traceback(None)  # which holds frames, among them the one that holds the lock
                if exc.errno in _HOPELESS:
                    break
            finally:
                self.tree.drop_unused(here)
        for left in pending:
            self.tree.drop_unused(left)
        if self.failed is None:
            for key in self.links.incomplete():
                self.links.searched(key)
        else:
            log_warning("the upper lacks names of hard links: %s", self.failed)
        return self.failed is None

    def _directory(self, here: DirNode) -> list[DirNode]:
        """Link the missing names of one directory. Returns its subdirectories."""
        if here.upper is None:
            return self._entries(here)
        with OwnerOverride(here.upper, with_parents=True):  # its mode, or one above it, may forbid writing
            return self._entries(here)

    def _entries(self, here: DirNode) -> list[DirNode]:
        low = here.low
        directories = []
        up_names = self.tree.up_names(here)
        for name, kind, ino in self.tree.visible(here):
            try:
                if kind == stat.S_IFDIR:
                    node = lookup.resolve(self.tree, here, name).node
                    if isinstance(node, DirNode):
                        directories.append(node)
                elif low is not None and name not in up_names and self._may_be_missing(low, name, ino):
                    self._file(here, name)
            except OSError as exc:
                self.failed = exc.with_traceback(None)
                if exc.errno in _HOPELESS:
                    break
        # The last is searched first: other names are most often near the one that was changed, which ends the walk.
        return sorted(directories, key=lambda directory: directory.upper is not None)

    def _may_be_missing(self, low: LowDir, name: bytes, ino: int) -> bool:
        if ino in self.inos:
            return True
        if len(self.lists_inos) == len(self.tree.lowers.branches) and all(self.lists_inos.values()):
            return False
        found = low.find(name)
        if found is None:
            return False
        branch = found.place.branch
        if branch not in self.lists_inos:
            self.lists_inos[branch] = found.place.stat_entry(name).st_ino == ino
        return not self.lists_inos[branch]

    def _file(self, here: DirNode, name: bytes) -> None:
        node = lookup.resolve(self.tree, here, name).node
        try:
            if isinstance(node, FileNode) and node.is_up and node.links is not None and node.links.key is not None:
                with OwnerOverride(node.home, with_parents=True), inode_flags.lifted(node.home, node.leaf):
                    copyup.give_name(self.tree, node, here, name)
        finally:
            self.tree.drop_unused(node)
