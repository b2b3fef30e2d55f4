"""Compare two trees: paths added, changed, deleted. Knows views. Does not know tars.

Directories with the same sources in both are skipped, so comparing a stack with the stack beneath its top layer reads
the top layer only. Files are compared by XXH3-128. Times count as a difference, since programs such as make use them.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from layers.safe_open import Path
from layers.tree import Node, View, content, target, xattrs
from unionfs.trees.open_beneath import is_gone

ADDED: Final = "A"
CHANGED: Final = "C"
DELETED: Final = "D"
EQUAL: Final = "="

Content = Callable[[Node], str]
"""A function that gives the fingerprint of a file's data, from the data or from a record."""


class Change(NamedTuple):
    """One changed path. `what` lists differences of a C: type, mode, owner, time, content, target, device, attributes.

    A directory without a difference of its own is a C with an empty `what` when something below it changed.
    EQUAL is a file that both trees store, without a difference (see `changes`).
    """

    kind: str
    path: Path
    what: tuple[str, ...]
    old: Node | None  # None if and only if kind is A
    new: Node | None  # None if and only if kind is D


def changes(old: View, new: View, *, fingerprint: Content = content, equal: bool = False) -> Iterator[Change]:
    """The changes that make `new` out of `old`, sorted by path, each directory before its content. An added directory
    is listed with its whole content, a deleted one alone.

    With `equal`, files that `new` stores again without a difference are listed as EQUAL.
    """
    old_root, new_root = old.root(), new.root()
    if new_root is None:
        return
    walk = _Walk(old, new, fingerprint, equal)
    yield from walk.pair((), old_root, new_root)


class _Walk:
    def __init__(self, old: View, new: View, fingerprint: Content, equal: bool) -> None:
        self.old = old
        self.new = new
        self.fingerprint = fingerprint
        self.equal = equal

    def pair(self, path: Path, old: Node | None, new: Node) -> Iterator[Change]:
        """The changes of one path and everything below it. Does not recurse: a tree may be deeper than Python's stack.

        An unchanged directory is listed only once a change below it is found.
        """
        todo: list[tuple[Path, Node | None, Node | None]] = [(path, old, new)]
        held: list[Change] = []  # the unchanged directories above the current path, outermost first
        while todo:
            where, before, after = todo.pop()
            while held and where[: len(held[-1].path)] != held[-1].path:
                held.pop()
            change = self.one(where, before, after)
            if change is not None and change.kind != EQUAL and (change.what or change.kind != CHANGED):
                yield from held
                held.clear()
                yield change
            elif change is not None and change.kind == EQUAL:
                yield change
            elif change is not None:
                held.append(change)
            if change is not None and change.new is not None and change.new.is_dir:
                todo += reversed(self.inside(where, before, change.new))

    def one(self, path: Path, old: Node | None, new: Node | None) -> Change | None:
        """The change of one path; None where neither it nor anything below it can differ."""
        if new is None:
            return Change(DELETED, path, (), old, None)
        if old is None:
            return Change(ADDED, path, (), None, new)
        if old.sources == new.sources:
            return None
        try:
            what = self.differences(old, new)
        except OSError as error:
            if not is_gone(error):
                raise
            return Change(DELETED, path, (), old, None)  # by a container that runs
        if not what and not new.is_dir:
            return Change(EQUAL, path, (), old, new) if self.equal else None
        return Change(CHANGED, path, what, old, new)

    def inside(self, path: Path, old: Node | None, new: Node) -> list[tuple[Path, Node | None, Node | None]]:
        before = self.old.children(old) if old is not None and old.is_dir else {}
        after = self.new.children(new)
        names = sorted(before.keys() | after.keys())
        return [((*path, name), before.get(name), after.get(name)) for name in names]

    def differences(self, old: Node, new: Node) -> tuple[str, ...]:
        if old.kind != new.kind:
            return ("type",)
        found = []
        if old.mode != new.mode and new.kind != stat.S_IFLNK:
            found.append("mode")
        if (old.uid, old.gid) != (new.uid, new.gid):
            found.append("owner")
        if new.kind == stat.S_IFREG and self._data_differ(old, new):
            found.append("content")
        if new.kind == stat.S_IFLNK and target(old) != target(new):
            found.append("target")
        if old.device != new.device:
            found.append("device")
        if xattrs(old) != xattrs(new):
            found.append("attributes")
        if not new.is_dir and old.mtime_ns != new.mtime_ns:
            found.append("time")
        return tuple(found)

    def _data_differ(self, old: Node, new: Node) -> bool:
        if old.data == new.data or old.inode == new.inode:
            return False
        return old.size != new.size or self.fingerprint(old) != self.fingerprint(new)
