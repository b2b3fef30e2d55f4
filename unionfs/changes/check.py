"""Plan how a list of changes is applied to a target directory, and find all objections. Changes nothing.

Knows branches and changes. The target is the union's only lower that holds no changes; they are applied to it.

Two kinds of objection: a *problem* (no permission, another filesystem, no space) would make the apply fail; a
*conflict* is a path of the target that was changed after the union began, so that applying would undo a change of
another program. All objections are found, not only the first.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from unionfs import markers
from unionfs.changes.compare import MODE, MTIME, OWNER, XATTRS
from unionfs.changes.listing import ADDED, Change, Changes
from unionfs.changes.objects import Branches, BranchPath, Object, ObjectState, child
from unionfs.changes.owners import CAPABILITY_XATTR, Owner, OwnerChoice
from unionfs.syscalls import statx

PUT: Final = "put"
"""Rename the new file over the path."""
SWAP: Final = "swap"
"""Exchange the new object with the old one at the path, if one of them is a directory; remove the old one."""
DROP: Final = "drop"
"""Remove the object at the path."""
SET_ATTRIBUTES: Final = "dress"  # the name in journals of 0.1
"""Set attributes of an object that stays: a directory, or a file of which only one attribute differs."""

_SPACE_KEPT: Final = 16 << 20  # bytes to leave free, for metadata of the new files
_PER_TREE: Final = 5  # maximum number of objections for one directory tree that is to be removed


class Objection(NamedTuple):
    """The reason why one path cannot or should not be changed. `privilege`: root could change it."""

    path: bytes
    why: str
    privilege: bool = False


class Right(NamedTuple):
    """The rights that a file or device gives to processes that use it: those of a user or group, or (both None) of
    root."""

    path: bytes
    what: str
    uid: int | None = None
    gid: int | None = None


class Action(NamedTuple):
    """One change to the target. `below` is built along with a new directory; `owner` is for `change.new`."""

    verb: str
    change: Change
    below: tuple[Change, ...]
    owner: Owner
    parent: Owner  # of the directory that the path is in
    parent_mode: int
    with_mtime: bool = True  # for SET_ATTRIBUTES: no other program changed the directory's content meanwhile

    @property
    def path(self) -> bytes:
        return self.change.path

    @property
    def for_directory(self) -> bool:
        """Whether the attributes of a directory are set."""
        return self.verb == SET_ATTRIBUTES and self.change.new is not None and self.change.new.is_dir


@dataclass(slots=True)
class ApplyPlan:
    """The actions that apply the changes, in order, and the objections to them."""

    actions: list[Action] = field(default_factory=list)
    problems: list[Objection] = field(default_factory=list)
    conflicts: list[Objection] = field(default_factory=list)
    warnings: list[Objection] = field(default_factory=list)
    rights: list[Right] = field(default_factory=list)
    space: int = 0  # bytes that the new files will take


def plan(branches: Branches, found: Changes, owners: OwnerChoice, began_ns: int | None) -> ApplyPlan:
    """The plan for applying `found` to the target. `began_ns` is when the union began, on the clock of file times.

    Raises OSError only if the target's root itself cannot be read.
    """
    check = _Check(branches, owners, began_ns)
    check.know_links(found)
    for change, below in _tops(found.changes):
        check.change(change, below)
    check.space()
    # New files first and removals last, so that an interruption leaves too much rather than too little (a moved
    # file exists twice, not nowhere). Directories get attributes from the deepest up: the mode may lock them.
    # Files that only get an attribute come first, since new names may be links of them.
    puts = [action for action in check.plan.actions if action.verb in (PUT, SWAP)]
    drops = [action for action in check.plan.actions if action.verb == DROP]
    attribute_changes = [action for action in check.plan.actions if action.verb == SET_ATTRIBUTES]
    files = [action for action in attribute_changes if not action.for_directory]
    directories = [action for action in attribute_changes if action.for_directory]
    check.plan.actions = files + puts + drops + directories[::-1]
    return check.plan


def _tops(changes: list[Change]) -> Iterator[tuple[Change, tuple[Change, ...]]]:
    """The changes outside of new directories, each with the changes inside of it; sorted by path."""
    built: dict[bytes, list[Change]] = {}  # new directories and everything in them
    tops: list[tuple[Change, list[Change]]] = []
    for change in sorted(changes, key=lambda change: change.path.split(b"/")):
        inside = built.get(change.path.rpartition(b"/")[0])
        if inside is not None:
            inside.append(change)
        else:
            inside = []
            tops.append((change, inside))
        if change.new is not None and change.new.is_dir and (change.old is None or not change.old.is_dir):
            built[change.path] = inside
    for change, below in tops:
        yield change, tuple(below)


class _Check:
    def __init__(self, branches: Branches, owners: OwnerChoice, began_ns: int | None) -> None:
        self.branches = branches  # immutable
        self.owners = owners  # immutable
        self.began_ns = began_ns  # immutable
        self.groups = {os.getegid(), *os.getgroups()}  # immutable
        self.plan = ApplyPlan()  # grows
        self.reachable: dict[bytes, str] = {b"": ""}  # directories of the target -> why not, empty if they are
        self.links: set[tuple[int, int]] = set()  # hard links whose data are counted
        self.files: dict[tuple[int, int], set[int]] = {}  # upper file with several names -> the target's files of those
        self.changed_names: Counter[tuple[int, int]] = Counter()  # file of the target -> its names that are changed

    def know_links(self, found: Changes) -> None:
        """Note the target's files at the names of each upper file that has several names."""
        for change in found.changes:
            new, old = change.new, change.old
            if old is not None and not old.is_dir:
                self.changed_names[old.dev, old.ino] += 1
            if new is None or old is None or new.nlink == 1 or new.is_dir:
                continue
            if new.place.branch < self.branches.own:
                self.files.setdefault((new.dev, new.ino), set()).add(old.ino)
        for key, path in found.unchanged_links.items():
            if key in self.files:
                try:
                    self.files[key].add(self.lstat(BranchPath(self.branches.own, path[1:])).st_ino)
                except OSError:
                    self.files[key].add(-1)  # removed meanwhile, so it is another file

    # -- objections ------------------------------------------------------------------------------------------------

    def problem(self, path: bytes, why: str, *, privilege: bool = False) -> None:
        if not (privilege and self.owners.privileged):
            self.plan.problems.append(Objection(path, why, privilege))

    def conflict(self, path: bytes, why: str) -> None:
        self.plan.conflicts.append(Objection(path, why))

    # -- one change ------------------------------------------------------------------------------------------------

    def change(self, change: Change, below: tuple[Change, ...]) -> None:
        parent_path = change.path.rpartition(b"/")[0]
        why = self.why_unreachable(parent_path)
        if why:
            self.problem(change.path, why)
            return
        try:
            parent = os.stat(
                b".", dir_fd=self.branches.dir_fd(BranchPath(self.branches.own, parent_path[1:])), follow_symlinks=False
            )
            old = self.on_target(change)
            self.judge(change, below, parent, old)
        except OSError as error:
            self.problem(change.path, os.strerror(error.errno or errno.EIO))

    def judge(
        self, change: Change, below: tuple[Change, ...], parent: os.stat_result, old: os.stat_result | None
    ) -> None:
        if change.old is not None and change.old.sealed:
            self.problem(change.path, "another filesystem is mounted there")
            return
        parent_owner = Owner(parent.st_uid, parent.st_gid)
        old_owner = Owner(old.st_uid, old.st_gid) if old is not None else None
        owner = parent_owner
        if change.new is not None:
            owner = self.owner_of(change.new, old_owner, parent_owner, parent.st_mode)
            self.rights(change.path, change.new, owner)
        if old is not None and self.stays(change):
            self.set_attributes(change, owner, old, parent_owner, parent.st_mode)
            return
        self.may_replace(change, parent, old)
        self.unchanged_since(change.path, change.old, change.new)
        if change.new is None:
            verb = DROP
        elif change.old is not None and (change.old.is_dir or change.new.is_dir):
            verb = SWAP
        else:
            verb = PUT
        if change.old is not None and change.old.is_dir:
            self.doomed(change.old.place, change.path)
        if change.new is not None:
            self.built(change, owner)
            for part in below:
                self.unchanged_since(part.path, None, part.new)
                if part.new is not None:
                    part_owner = self.owner_of(part.new, None, parent_owner, parent.st_mode)
                    self.built(part, part_owner)
                    self.rights(part.path, part.new, part_owner)
        self.plan.actions.append(Action(verb, change, below, owner, parent_owner, parent.st_mode))

    def stays(self, change: Change) -> bool:
        """Whether the object at the path is changed, not replaced: a directory, or a file that one system call can
        change. So it keeps its inode number, its other names, and processes can go on using it.
        """
        new, old = change.new, change.old
        if new is None or old is None or new.kind != old.kind:
            return False
        if new.is_dir:
            return True
        if len(self.files.get((new.dev, new.ino), ())) > 1:
            return False  # several files became one
        if old.nlink > 1 and not self.is_copy(new, old):
            return False  # another file has replaced one of several names; the other names must not change
        if change.what == (OWNER,):
            # Giving a file away takes its set-id bits and capabilities, which would have to be put back.
            special = new.mode & (stat.S_ISUID | stat.S_ISGID) or CAPABILITY_XATTR in self.branches.xattrs(new.place)
            return not special
        return change.what in ((MTIME,), (MODE,))

    def is_copy(self, new: Object, old: Object) -> bool:
        """Whether the union copied `new` up from `old`: it is still one file with the other names of that."""
        if new.kind != stat.S_IFREG:
            return new.nlink > 1  # cannot carry the mark; the other link is in the union's index
        mark = self.branches.xattrs(new.place, private=True).get(markers.ORIGIN_XATTR, b"")
        return mark.rpartition(b"-")[2] == b"%x" % old.ino

    def owner_of(self, new: Object, old: Owner | None, parent: Owner, parent_mode: int) -> Owner:
        """The owner: a moved object keeps its owner, a new one gets the chosen owner."""
        if new.place.branch >= self.branches.own:
            st = self.lstat(new.place)
            return Owner(st.st_uid, st.st_gid)
        return self.owners.choose(new, old, parent, parent_mode)

    def set_attributes(
        self, change: Change, owner: Owner, old: os.stat_result, parent: Owner, parent_mode: int
    ) -> None:
        assert change.new is not None
        mine = self.owners.privileged or old.st_uid == os.geteuid()
        says = set(change.what) & {MODE, OWNER, XATTRS}
        if says and not mine:
            self.problem(
                change.path, f"its {' and '.join(sorted(says))} may be changed by its owner only", privilege=True
            )
        if OWNER in says:
            self.may_own(change.path, owner)
        if (says or not change.new.is_dir) and self.is_read_only(change.path.rpartition(b"/")[0]):
            self.problem(change.path, "its filesystem is read-only")
        if not change.new.is_dir:
            self.unchanged_since(change.path, change.old, None)
            if not mine and not says:
                self.problem(change.path, "its time may be changed by its owner only", privilege=True)
        elif says and self.is_newer(old.st_ctime_ns) and old.st_ctime_ns != old.st_mtime_ns:
            # Entries that come and go set both times; attributes set only one.
            self.conflict(change.path, "its attributes were changed since")
        if mine:
            untouched = not change.new.is_dir or not self.is_newer(old.st_mtime_ns)
            self.plan.actions.append(Action(SET_ATTRIBUTES, change, (), owner, parent, parent_mode, untouched))

    # -- permissions -----------------------------------------------------------------------------------------------

    def may_replace(self, change: Change, parent: os.stat_result, old: os.stat_result | None) -> None:
        """Whether an entry of the parent directory may be added, replaced or removed."""
        parent_path, _, name = change.path.rpartition(b"/")
        fd = self.branches.dir_fd(BranchPath(self.branches.own, parent_path[1:]))
        if self.is_read_only(parent_path):
            self.problem(change.path, "its filesystem is read-only")
        elif not os.access(b".", os.W_OK | os.X_OK, dir_fd=fd, effective_ids=True) and parent.st_uid != os.geteuid():
            self.problem(change.path, f"no permission to write in {_shown(parent_path)}", privilege=True)
        elif old is not None and parent.st_mode & stat.S_ISVTX and os.geteuid() not in (old.st_uid, parent.st_uid):
            self.problem(
                change.path, f"in {_shown(parent_path)} only the owner may replace or remove it", privilege=True
            )
        bits = statx.attributes(fd, b"") & (statx.ATTR_IMMUTABLE | (statx.ATTR_APPEND if old is not None else 0))
        if old is not None:
            own = statx.attributes(fd, name)
            bits |= own & (statx.ATTR_IMMUTABLE | statx.ATTR_APPEND)
            if own & statx.ATTR_MOUNT_ROOT:
                self.problem(change.path, "something is mounted there")
        if bits:
            self.problem(change.path, "it or its directory is immutable or append-only (lsattr, chattr)")

    def is_read_only(self, path: bytes) -> bool:
        return bool(os.fstatvfs(self.branches.dir_fd(BranchPath(self.branches.own, path[1:]))).f_flag & os.ST_RDONLY)

    def may_own(self, path: bytes, owner: Owner) -> None:
        if owner.uid != os.geteuid() or owner.gid not in self.groups:
            self.problem(path, f"it would belong to {owner.uid}:{owner.gid}", privilege=True)

    def built(self, change: Change, owner: Owner) -> None:
        """Check that the process may make this object, and add up its cost."""
        new = change.new
        assert new is not None
        if new.sealed:
            self.problem(change.path, "it holds a place where another filesystem is mounted")
            return
        self.may_own(change.path, owner)
        if new.kind in (stat.S_IFCHR, stat.S_IFBLK):
            self.problem(change.path, "making a device needs root", privilege=True)
        elif any(name == CAPABILITY_XATTR or name.startswith("trusted.") for name in self.branches.xattrs(new.place)):
            self.problem(change.path, "it has capabilities or trusted attributes", privilege=True)
        if (new.dev, new.ino) not in self.links:
            self.plan.space += new.space
        if new.nlink > 1:
            self.links.add((new.dev, new.ino))
        if change.old is not None and not change.old.is_dir:
            others = change.old.nlink - self.changed_names[change.old.dev, change.old.ino]
            if others > 0:
                why = f"has {others} more names on this machine, which keep the old content"
                self.plan.warnings.append(Objection(change.path, why))

    def rights(self, path: bytes, new: Object, owner: Owner) -> None:
        """Note which rights the object gives at its place."""
        if new.kind in (stat.S_IFCHR, stat.S_IFBLK):
            self.plan.rights.append(Right(path, "is a device"))
        elif new.kind == stat.S_IFREG and not new.sealed:
            if new.mode & stat.S_ISUID:
                self.plan.rights.append(Right(path, f"runs with the rights of user {owner.uid} (set-id)", owner.uid))
            if new.mode & stat.S_ISGID:
                what = f"runs with the rights of group {owner.gid} (set-id)"
                self.plan.rights.append(Right(path, what, gid=owner.gid))
            if CAPABILITY_XATTR in self.branches.xattrs(new.place):
                self.plan.rights.append(Right(path, "has capabilities"))

    def space(self) -> None:
        """Whether the target has room for everything that is built aside."""
        state = os.fstatvfs(self.branches.dir_fd(BranchPath(self.branches.own, b"")))
        free = (state.f_bfree if self.owners.privileged else state.f_bavail) * state.f_frsize
        if self.plan.space and self.plan.space + _SPACE_KEPT > free:
            why = f"{self.plan.space >> 20} MiB are to be written, {free >> 20} MiB are free"
            self.plan.problems.append(Objection(b"/", why))

    # -- the target's state ----------------------------------------------------------------------------------------

    def is_newer(self, time_ns: int) -> bool:
        return self.began_ns is not None and time_ns > self.began_ns

    def unchanged_since(self, path: bytes, old: Object | None, new: Object | None) -> None:
        """Object to files that were changed after the union began: replaced ones, and sources of moved ones."""
        if old is not None and not old.is_dir and self.is_newer(old.ctime_ns):
            self.conflict(path, "was changed on this machine since")
        if new is not None and new.place.branch >= self.branches.own and self.is_newer(new.ctime_ns):
            self.conflict(path, f"is moved from /{os.fsdecode(new.rel)}, which was changed on this machine since")

    def changed_in_place(self, change: Change, expected: Object, found: os.stat_result) -> None:
        """Object to attributes that differ from those at the time of the listing. Directories may have got or lost
        entries."""
        if not expected.is_dir:
            self.conflict(change.path, "was changed on this machine since")
        elif expected.mode != found.st_mode and set(change.what) & {MODE, OWNER, XATTRS}:
            self.conflict(change.path, "its attributes were changed since")

    def doomed(self, place: BranchPath, path: bytes) -> None:
        """Object to new, mounted or unremovable entries in a directory tree that is to be removed."""
        named = 0
        todo = [place]
        while todo and named < _PER_TREE:
            here = todo.pop()
            shown = path + here.rel[len(place.rel) :]
            before = len(self.plan.problems) + len(self.plan.conflicts)
            st = self.lstat(here)
            if self.is_newer(st.st_ctime_ns):
                self.conflict(shown, "is to be removed, and something in it was changed on this machine since")
            names = self.branches.names(here)
            fd = self.branches.dir_fd(here)
            mine = st.st_uid == os.geteuid()
            if names and not mine and not os.access(b".", os.W_OK | os.X_OK, dir_fd=fd, effective_ids=True):
                self.problem(shown, "no permission to remove its content", privilege=True)
            for name in names:
                inner = os.stat(name, dir_fd=self.branches.dir_fd(here), follow_symlinks=False)
                if stat.S_ISDIR(inner.st_mode):
                    entry = self.branches.entry(here, name)
                    if entry.object is not None and entry.object.sealed:
                        self.problem(shown + b"/" + name, "is to be removed, and another filesystem is mounted there")
                    else:
                        todo.append(child(here, name))
                elif self.is_newer(inner.st_ctime_ns):
                    self.conflict(shown + b"/" + name, "is to be removed, and was changed on this machine since")
            named += len(self.plan.problems) + len(self.plan.conflicts) - before

    def on_target(self, change: Change) -> os.stat_result | None:
        """The object at the path now. It must be the same as when the changes were listed."""
        try:
            found = self.lstat(BranchPath(self.branches.own, change.path[1:]))
        except FileNotFoundError:
            found = None
        expected = None if change.kind == ADDED else change.old
        if (found is None) != (expected is None) or (
            found is not None
            and expected is not None
            and not ObjectState.of(expected).same_object(ObjectState.of(found))
        ):
            self.conflict(change.path, "was added, removed or replaced on this machine since")
        elif found is not None and expected is not None and found.st_ctime_ns != expected.ctime_ns:
            self.changed_in_place(change, expected, found)
        return found

    def lstat(self, place: BranchPath) -> os.stat_result:
        if not place.rel:
            return os.stat(b".", dir_fd=self.branches.dir_fd(place), follow_symlinks=False)
        parent, _, name = place.rel.rpartition(b"/")
        return os.stat(name, dir_fd=self.branches.dir_fd(BranchPath(place.branch, parent)), follow_symlinks=False)

    def why_unreachable(self, path: bytes) -> str:
        """Why the directory `path` of the target cannot be changed; empty if it can."""
        unknown = []
        while (why := self.reachable.get(path)) is None:
            unknown.append(path)
            path = path.rpartition(b"/")[0]
        for deeper in reversed(unknown):
            why = why or self._why_not(deeper)
            self.reachable[deeper] = why
        return why

    def _why_not(self, path: bytes) -> str:
        """Why a directory, whose parent can be changed, cannot be changed."""
        parent, _, name = path.rpartition(b"/")
        try:
            found = self.branches.entry(BranchPath(self.branches.own, parent[1:]), name).object
        except OSError as error:
            return os.strerror(error.errno or errno.EIO)
        if found is None or not found.is_dir:
            return f"{_shown(path)} is no directory on this machine any more"
        if found.sealed:
            return f"{_shown(path)} is on another filesystem, or hidden from the union"
        return ""


def _shown(path: bytes) -> str:
    return os.fsdecode(path) or "/"
