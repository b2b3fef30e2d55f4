"""Make the changes of one stack of branches in the union of another stack, by ordinary operations of the core.

Used when only some changes of a fork are merged, or when the fork's branches would hide changes of the parent. Each
changed path gets the fork's state, and replaces the parent's object there. Files that replace nothing do not need the
core (containers.branch_files). Names of one file stay names of one file. Runs with the ids of the container.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Mapping
from typing import Final

from unionfs.changes.compare import CONTENT, MODE, MTIME, OWNER, TYPE, XATTRS
from unionfs.changes.listing import Change
from unionfs.changes.merging import own
from unionfs.changes.objects import Branches, Object
from unionfs.changes.stage import copy_data
from unionfs.containers.branch_files import BranchFiles
from unionfs.core.attrs import ROOT, AttrChange, Caller, Entry
from unionfs.core.union import Union

_ALL: Final = (OWNER, XATTRS, MODE, MTIME)


def replay(
    union: Union,
    branches: Branches,
    changes: Iterable[Change],
    unchanged_links: Mapping[tuple[int, int], bytes],
    new_files: BranchFiles,
) -> None:
    """Make the changes, whose objects are in `branches`, in `union`. `unchanged_links`: as in listing.Changes.
    `new_files`: of the union's upper. Raises OSError; then a part of them is made."""
    _Replay(union, branches, changes, unchanged_links, new_files).run()


def _has_data_of(there: Entry | None, old: Object | None) -> bool:
    """Whether a file still has the data that it had before either side changed it."""
    return (
        there is not None and old is not None and (there.attrs.size, there.attrs.mtime_ns) == (old.size, old.mtime_ns)
    )


class _Replay:
    def __init__(
        self,
        union: Union,
        branches: Branches,
        changes: Iterable[Change],
        unchanged_links: Mapping[tuple[int, int], bytes],
        new_files: BranchFiles,
    ) -> None:
        self.unchanged_links = unchanged_links  # immutable
        self.union = union  # immutable
        self.branches = branches  # immutable
        self.changes = sorted(changes, key=lambda change: change.path.split(b"/"))  # immutable
        self.directories = {  # the fork's directories, by path, with those listed only because of changes below them
            change.path: change.new for change in self.changes if change.new is not None and change.new.is_dir
        }
        self.new_files = new_files  # immutable
        self.links: dict[tuple[int, int], int] = {}  # a file with several names -> the node of its copy
        self.times: list[tuple[bytes, Object]] = []  # directories whose times are set at the end
        self.has_copied = False
        self.caller = Caller(os.geteuid(), os.getegid())

    def run(self) -> None:
        for change in self.new_files.take(own(self.changes)):
            self.change(change)
        held = self.union.syncfs_fd()
        with contextlib.nullcontext() if held is None else held:
            self.has_copied |= self.new_files.make(self.bring_up, self.make, None if held is None else held.fd)
        for path, new in reversed(self.times):
            entry = self.find(path)
            if entry is not None:
                self.union.setattr(entry.nodeid, AttrChange(mtime_ns=new.mtime_ns))
        if self.has_copied:  # before the record names the new branch
            self.union.syncfs()

    def change(self, change: Change) -> None:
        new = change.new
        there = self.find(change.path)
        if new is None:
            if there is not None:
                self.remove(change.path, there)
            return
        is_new = {CONTENT, TYPE} & set(change.what) or not _has_data_of(there, change.old)
        same_kind = there is not None and stat.S_IFMT(there.attrs.mode) == new.kind
        if there is not None and same_kind and (new.is_dir or not is_new):
            self.set_attributes(there.nodeid, new, change.what or _ALL)
            if new.is_dir:
                self.times.append((change.path, new))
            return
        if there is not None:
            self.remove(change.path, there)
        self.make(change.path, new)

    # -- names -------------------------------------------------------------------------------------------------------

    def find(self, path: bytes) -> Entry | None:
        """The object at a path of the union."""
        at = Entry(ROOT, self.union.getattr(ROOT))
        for name in path.split(b"/")[1:]:
            if not name:
                continue
            if not stat.S_ISDIR(at.attrs.mode):
                return None
            found = self.union.find(at.nodeid, name)
            if found is None:
                return None
            at = found
        return at

    def parent(self, path: bytes) -> int:
        """Return the node of the directory above a path. A missing one is made with the fork's attributes."""
        above = path.rpartition(b"/")[0]
        there = self.find(above)
        if there is not None and stat.S_ISDIR(there.attrs.mode):
            return there.nodeid
        if there is not None:
            self.remove(above, there)
        self.make(above, self.directories[above])
        made = self.find(above)
        assert made is not None
        return made.nodeid

    def bring_up(self, path: bytes) -> None:
        """Bring a directory into the upper: a missing one is made with the fork's attributes, another is copied up."""
        nodeid = self.parent(path + b"/")
        self.union.setattr(nodeid, AttrChange(mtime_ns=self.union.getattr(nodeid).mtime_ns))

    def remove(self, path: bytes, entry: Entry) -> None:
        parent, name = self.parent(path), path.rpartition(b"/")[2]
        if not stat.S_ISDIR(entry.attrs.mode):
            self.union.unlink(parent, name)
            return
        for line in list(self.union.readdir(entry.nodeid, 2)):
            found = self.union.find(entry.nodeid, line.name)
            if found is not None:
                self.remove(path + b"/" + line.name, found)
        self.union.rmdir(parent, name)

    # -- objects -----------------------------------------------------------------------------------------------------

    def make(self, path: bytes, new: Object) -> None:
        parent, name = self.parent(path), path.rpartition(b"/")[2]
        if new.is_dir:
            made = self.union.mkdir(parent, name, 0o700, self.caller).nodeid
            self.times.append((path, new))
        elif new.nlink > 1 and (first := self.first_name(new)) is not None:
            self.union.link(first, parent, name)
            return
        elif new.kind == stat.S_IFLNK:
            made = self.union.symlink(parent, name, self.branches.readlink(new.place), self.caller).nodeid
        else:
            made = self.union.mknod(parent, name, new.kind | 0o600, new.rdev, self.caller).nodeid
            if new.kind == stat.S_IFREG:
                self.copy(made, new)
        self.links[new.dev, new.ino] = made
        self.set_attributes(made, new, _ALL)

    def first_name(self, new: Object) -> int | None:
        """The node of a file that has another name already."""
        key = (new.dev, new.ino)
        if key not in self.links and key in self.unchanged_links:
            there = self.find(self.unchanged_links[key])
            if there is not None and stat.S_IFMT(there.attrs.mode) == new.kind:
                self.links[key] = there.nodeid
        return self.links.get(key)

    def copy(self, nodeid: int, new: Object) -> None:
        self.has_copied = True
        source = self.branches.open_data(new.data)
        try:
            with self.union.write_fd(nodeid) as target:
                copy_data(source, target.fd)
        finally:
            os.close(source)

    def set_attributes(self, nodeid: int, new: Object, what: tuple[str, ...]) -> None:
        """Set owner, attributes, mode and time, in an order in which none undoes another."""
        union = self.union
        if OWNER in what:
            union.setattr(nodeid, AttrChange(uid=new.uid, gid=new.gid))
        if XATTRS in what:
            wanted = {os.fsencode(name): value for name, value in self.branches.xattrs(new.place).items()}
            present = {name: union.getxattr(nodeid, name) for name in union.listxattr(nodeid)}
            for name in present.keys() - wanted.keys():
                union.removexattr(nodeid, name)
            for name, value in wanted.items():
                if present.get(name) != value:
                    union.setxattr(nodeid, name, value, 0)
        if new.kind != stat.S_IFLNK and {OWNER, XATTRS, MODE} & set(what):
            union.setattr(nodeid, AttrChange(mode=stat.S_IMODE(new.mode)))
        if MTIME in what and not new.is_dir:
            union.setattr(nodeid, AttrChange(mtime_ns=new.mtime_ns))
