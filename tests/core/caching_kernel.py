"""A kernel in miniature: it caches all answers of a watched union until an invalidation arrives.

Entries, missing names, attributes, listings and contents are kept for ever, as the engines let the kernel keep them.
What this kernel's own changes touch it forgets by itself, as the real one does.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from typing import Any

from unionfs.core.attrs import ANY_NAME, ROOT, AttrChange, Attrs, Caller, Entry, Invalidation
from unionfs.core.union import Union

ME = Caller(0, 0, 0, 0o022)
Seen = dict[bytes, tuple[object, ...]]


class CachingKernel:
    """Programs' view of a union that is watched, or that tells of its changes by other ways."""

    def __init__(self, union: Union, *, watches: bool = True) -> None:
        self.union = union
        self.told: list[Invalidation] = []
        self.limits: list[int] = []
        self._names: dict[tuple[int, bytes], int] = {}  # 0: missing
        self._lookups: dict[int, int] = {}
        self._attrs: dict[int, Attrs] = {}
        self._listings: dict[int, list[tuple[bytes, int]]] = {}
        self._data: dict[int, bytes] = {}
        if watches:
            union.watch(self.hear, self.limits.append)

    def process_events(self) -> None:
        """Let the union look at what has happened."""
        while self.union.process_events():
            pass

    def hear(self, stale: list[Invalidation]) -> None:
        for each in stale:
            self.told.append(each)
            if each == ANY_NAME:
                self._names.clear()
            elif each.name:
                self._drop_name(each.nodeid, each.name)
                self._listings.pop(each.nodeid, None)
                self._attrs.pop(each.nodeid, None)
            else:
                self._attrs.pop(each.nodeid, None)
                if each.data:
                    self._data.pop(each.nodeid, None)
                    self._listings.pop(each.nodeid, None)

    def _drop_name(self, parent: int, name: bytes) -> None:
        """With all names beneath, as d_invalidate does."""
        nodeid = self._names.pop((parent, name), 0)
        for below in [key for key in self._names if key[0] == nodeid] if nodeid else ():
            self._drop_name(*below)

    def lookup(self, parent: int, name: bytes) -> int:
        """The node id of a name, 0 if it is missing."""
        key = (parent, name)
        if key not in self._names:
            try:
                entry = self.union.lookup(parent, name)
            except FileNotFoundError:
                self._names[key] = 0
            else:
                self._names[key] = entry.nodeid
                self._attrs[entry.nodeid] = entry.attrs
                self._lookups[entry.nodeid] = self._lookups.get(entry.nodeid, 0) + 1
        return self._names[key]

    def attrs(self, nodeid: int) -> Attrs:
        if nodeid not in self._attrs:
            self._attrs[nodeid] = self.union.getattr(nodeid)
        return self._attrs[nodeid]

    def _listing(self, nodeid: int) -> list[tuple[bytes, int]]:
        if nodeid not in self._listings:
            self._listings[nodeid] = [(line.name, line.kind) for line in self.union.readdir(nodeid, 2)]
        return self._listings[nodeid]

    def content(self, nodeid: int) -> bytes:
        if nodeid not in self._data:
            self._data[nodeid] = self.union.read(nodeid, 0, 1 << 20)
        return self._data[nodeid]

    def walk(self, nodeid: int = ROOT, path: bytes = b"", also: tuple[bytes, ...] = ()) -> Seen:
        """Everything that can be seen, by path; `also` are names that are asked for in each directory."""
        attrs = self.attrs(nodeid)
        seen: Seen = {path: _plain(attrs) if path else _plain(attrs)[:-1]}  # the root keeps the number it began with
        if stat.S_ISDIR(attrs.mode):
            listed = self._listing(nodeid)
            seen[path + b"/"] = tuple(sorted(listed))
            for name in {name for name, _ in listed} | set(also):
                child = self.lookup(nodeid, name)
                if child:
                    seen |= self.walk(child, path + b"/" + name, also)
        elif stat.S_ISREG(attrs.mode):
            seen[path] += (self.content(nodeid),)
        elif stat.S_ISLNK(attrs.mode):
            seen[path] += (self.union.readlink(nodeid),)
        return seen

    def lookups(self) -> dict[int, int]:
        """What is owed: node id -> number of entries received. They are as forgotten by the caller."""
        owed, self._lookups = self._lookups, {}
        self._names.clear()
        return owed

    def forget(self, nodeid: int) -> None:
        """Forget one node, which has no name any more."""
        self.union.forget(nodeid, self._lookups.pop(nodeid))

    def find(self, path: bytes) -> int:
        """The node id at a path, 0 if there is none."""
        nodeid = ROOT
        for name in path.split(b"/"):
            nodeid = self.lookup(nodeid, name)
            if not nodeid or (name != path.rsplit(b"/", 1)[-1] and not stat.S_ISDIR(self.attrs(nodeid).mode)):
                break
        return nodeid

    def change(
        self, verb: Callable[..., Any], *args: Any, touches: tuple[int, ...], names: tuple[Any, ...] = ()
    ) -> None:
        """A change through the union; what it touches is asked for anew."""
        try:
            made = verb(*args)
            if isinstance(made, Entry):
                self._lookups[made.nodeid] = self._lookups.get(made.nodeid, 0) + 1
        finally:
            for nodeid in touches:
                for known in (self._attrs, self._listings, self._data):
                    known.pop(nodeid, None)
            for parent, name in names:
                nodeid = self._names.get((parent, name), 0)
                self._attrs.pop(nodeid, None)
                self._drop_name(parent, name)

    def write(self, nodeid: int, data: bytes) -> None:
        self.change(self.union.write, nodeid, 0, data, touches=(nodeid,))

    def chmod(self, nodeid: int, mode: int) -> None:
        self.change(self.union.setattr, nodeid, AttrChange(mode=mode), touches=(nodeid,))

    def create(self, parent: int, name: bytes) -> None:
        self.change(self.union.mknod, parent, name, 0o100644, 0, ME, touches=(parent,), names=((parent, name),))

    def mkdir(self, parent: int, name: bytes) -> None:
        self.change(self.union.mkdir, parent, name, 0o755, ME, touches=(parent,), names=((parent, name),))

    def link(self, nodeid: int, parent: int, name: bytes) -> None:
        touches = (nodeid, parent)
        self.change(self.union.link, nodeid, parent, name, touches=touches, names=((parent, name),))

    def unlink(self, parent: int, name: bytes) -> None:
        self.change(self.union.unlink, parent, name, touches=(parent,), names=((parent, name),))

    def rmdir(self, parent: int, name: bytes) -> None:
        self.change(self.union.rmdir, parent, name, touches=(parent,), names=((parent, name),))

    def rename(self, parent: int, name: bytes, to: int, new: bytes) -> None:
        names = ((parent, name), (to, new))
        self.change(self.union.rename, parent, name, to, new, touches=(parent, to), names=names)


def _plain(attrs: Attrs) -> tuple[object, ...]:
    """What must be the same in another union over the same branches."""
    size = 0 if stat.S_ISDIR(attrs.mode) else attrs.size
    return attrs.mode, attrs.uid, attrs.gid, size, attrs.mtime_ns, attrs.ino
