"""Find the paths that an upper added, changed or deleted, by walking only the upper.

In the lowers only names of the upper are looked up. Two trees are compared as they would be shown: the old one
is the union of the lowers without the upper, the new one has the upper on top; below an opaque or redirected directory
they come from different places, so there every name of both is compared. Directories that were the upper once
(core.freeze) count as parts of the upper.

The result is as in `docker diff`: A for a new path, C for a path that differs or has a difference below it, D
for a deleted path (of a directory only the top). A file that was copied up but is equal in everything is no change. The
union's root itself is listed only for a change of its mode: its other attributes depend on how the upper was made.

The tree may be changed meanwhile: files that vanish are left out.
"""

from __future__ import annotations

import stat
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from unionfs import markers
from unionfs.changes import compare
from unionfs.changes.lowers import Found, Stack, lookup, names
from unionfs.changes.objects import UPPER, Branches, BranchPath, Object, incomplete
from unionfs.trees import walk

ADDED: Final = "A"
CHANGED: Final = "C"
DELETED: Final = "D"


class Change(NamedTuple):
    """One changed path, absolute within the union. `what` names the differences of a C (see compare); empty for a
    directory that is listed only because of changes below it."""

    kind: str
    path: bytes
    what: tuple[str, ...]
    new: Object | None  # None if and only if kind is D
    old: Object | None  # None if and only if kind is A


@dataclass(slots=True)
class Changes:
    """All changes of one upper, sorted by path."""

    changes: list[Change] = field(default_factory=list)
    unchanged_links: dict[tuple[int, int], bytes] = field(default_factory=dict)
    """(dev, ino) of hard-linked upper files that were copied up but not changed -> path: a link to one of these is a
    link to the lower file of that path."""


def without(changes: Sequence[Change], mountpoints: Collection[bytes]) -> list[Change]:
    """The changes without empty files and directories that were only made to mount something on, and without the
    directories that were listed for those alone."""
    if not any(change.kind == ADDED and change.path in mountpoints for change in changes):
        return sorted(changes, key=lambda change: change.path)
    kept: list[Change] = []
    busy: set[bytes] = set()  # the directories above changes that are kept
    left: set[bytes] = set()  # the directories above changes that are left out
    for change in sorted(changes, key=lambda change: change.path.count(b"/"), reverse=True):
        new = change.new
        is_bare = change.path not in busy and new is not None and (new.is_dir or (new.size == 0 and _is_file(new)))
        for_that = change.path in left and change.kind == CHANGED and change.what in ((), (compare.MTIME,))
        if is_bare and ((change.kind == ADDED and change.path in mountpoints) or for_that):
            left.add(change.path.rpartition(b"/")[0])
            continue
        kept.append(change)
        path = change.path
        while (path := path.rpartition(b"/")[0]) and path not in busy:
            busy.add(path)
    return sorted(kept, key=lambda change: change.path)


def _is_file(one: Object) -> bool:
    return stat.S_ISREG(one.mode)


class _Directory(NamedTuple):
    """A directory of the new tree that is to be walked."""

    path: bytes
    new: Stack  # branches that show
    old: Stack  # lowers that showed at this path without the upper

    @property
    def own(self) -> Stack | None:
        """The branches on top of `old`; None if `new` does not end with `old`."""
        above = len(self.new) - len(self.old)
        return self.new[:above] if above >= 0 and self.new[above:] == self.old else None


Within = Callable[[bytes], Collection[bytes] | None]
"""Returns the names to compare in the directory at a path (empty for the root); None: all."""

See = Callable[[bytes, Object, Object | None], None]
"""Called for each regular file of the upper, changed or not: its path, the file, and the file that it hides, if any."""


def changes(branches: Branches, see: See | None = None, within: Within | None = None) -> Changes:
    """Compare the upper with the lowers; with `within` only the paths that it selects. Raises OSError, mostly EACCES,
    for files that cannot be read."""
    comparison = _Comparison(branches, see, within)
    old = branches.bases()
    upper_root = branches.root(UPPER)
    assert upper_root.object is not None
    top = BranchPath(UPPER, b"")
    comparison.todo.append(_Directory(b"", (top,) if upper_root.opaque else (top, *branches.roots()), old))
    if old:
        comparison.root(upper_root.object, branches.root(old[0].branch).object)
    while comparison.todo:
        try:
            comparison.directory(comparison.todo.popleft())
        except (FileNotFoundError, NotADirectoryError):
            continue  # removed or replaced since it was listed
    comparison.add_ancestors()
    comparison.result.changes.sort(key=lambda change: change.path)
    return comparison.result


class _Comparison:
    def __init__(self, branches: Branches, see: See | None, within: Within | None) -> None:
        self.branches = branches  # immutable
        self.see = see  # immutable
        self.within = within  # immutable
        self.result = Changes()  # grows
        self.todo: deque[_Directory] = deque()
        self.merged: dict[
            bytes, tuple[Object, Object]
        ] = {}  # directories in both trees that differ in nothing themselves

    def root(self, new: Object, old: Object | None) -> None:
        if old is not None and stat.S_IMODE(new.mode) != stat.S_IMODE(old.mode):
            self.result.changes.append(Change(CHANGED, b"/", (compare.MODE,), new, old))

    def directory(self, here: _Directory) -> None:
        own = here.own
        said: set[bytes] = set()
        for place in here.new if own is None else own:
            listed = self.branches.names(place)
            marks = [name for name in listed if markers.is_reserved(name)]
            said.update(set(listed).difference(marks))
            said.update(hidden for mark in marks if (hidden := markers.hidden_name(mark)))
        if own is None:
            said |= names(self.branches, here.old)
        if self.within is not None and (selected := self.within(here.path)) is not None:
            said.intersection_update(selected)
        if not here.old and len(here.new) == 1:
            said = self.add_files(here, said)
        for name in said:
            try:
                self.name(here, name)
            except (FileNotFoundError, NotADirectoryError):
                continue

    def add_files(self, here: _Directory, names: set[bytes]) -> set[bytes]:
        """Note the files of a directory that only one branch has, as `name` does, but faster. Returns the other names:
        of directories and of what has marks."""
        place = here.new[0]
        plain = self.branches.plain_files(place, names)
        prefix = here.path + b"/"
        self.result.changes += [Change(ADDED, prefix + name, (), found, None) for name, found in plain.items()]
        if self.see is not None and self.is_own(place):
            for name, found in plain.items():
                if stat.S_ISREG(found.mode):
                    self.see(prefix + name, found, None)
        return names - plain.keys()

    def name(self, here: _Directory, name: bytes) -> None:
        """Compare one name of the two trees, and note a directory to walk below it."""
        path = here.path + b"/" + name
        old = lookup(self.branches, here.old, name) if here.old else None
        found = self.new(here, name)
        if found is None:
            if old is not None:
                self.result.changes.append(Change(DELETED, path, (), None, old.object))
            return
        old_stack: Stack = ()
        if old is None:
            self.result.changes.append(Change(ADDED, path, (), found.object, None))
        else:
            what = compare.differences(self.branches, found.object, old.object)
            if what:
                self.result.changes.append(Change(CHANGED, path, what, found.object, old.object))
            elif found.object.is_dir:
                self.merged[path] = (found.object, old.object)
            elif found.object.nlink > 1 and self.is_own(found.object.place):
                self.result.unchanged_links[found.object.dev, found.object.ino] = path
            if old.object.is_dir:
                old_stack = old.stack
        if found.object.is_dir and found.stack != old_stack:
            self.todo.append(_Directory(path, found.stack, old_stack))

    def is_own(self, place: BranchPath) -> bool:
        return place.branch < self.branches.own

    def new(self, here: _Directory, name: bytes) -> Found | None:
        """Look up `name` in the new tree."""
        for step in walk.steps(self.branches, here.new, name):
            if step.outcome == walk.ABSENT:
                continue
            visible = step.entry.object
            if step.outcome == walk.FILE and visible is not None and self.is_own(visible.place):
                return self.file(here.path + b"/" + name, step, visible)
            break
        return lookup(self.branches, here.new, name)

    def file(self, path: bytes, step: walk.Step[BranchPath, Object], visible: Object) -> Found:
        """The file that an own branch shows."""
        name = path.rpartition(b"/")[2]
        if step.entry.metacopy:
            data = walk.metacopy_data(self.branches, step.below, name, step.entry.redirect, visible.place)
            if data == visible.place and visible.size:
                raise incomplete(data)
            visible = visible._replace(data=data)
        if self.see is not None and stat.S_ISREG(visible.mode):
            below = lookup(self.branches, step.below, name)
            hidden = below.object if below is not None and stat.S_ISREG(below.object.mode) else None
            self.see(path, visible, hidden)
        return Found(visible, ())

    def add_ancestors(self) -> None:
        """List every directory above a change, up to the one that is listed already."""
        listed = {change.path for change in self.result.changes}
        for directory in {change.path.rpartition(b"/")[0] for change in self.result.changes}:
            path = directory
            while path and path not in listed and (pair := self.merged.get(path)) is not None:
                listed.add(path)
                self.result.changes.append(Change(CHANGED, path, (), *pair))
                path = path.rpartition(b"/")[0]
