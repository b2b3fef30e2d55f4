"""The union of the lower branches: an immutable tree in which each merged directory is scanned at most once.

Follows the rule of `unionfs.trees.walk` (down from the top lower; a whiteout, an opaque or redirected directory, or
anything that is not a directory ends the walk), with a cache and as few system calls as will do. Knows branches and
marks. Does not know the upper, nodes, or callers.

Cost does not grow with the number of branches: a directory with many lookups is scanned once in each branch that has it
and is then served from memory, missing names too; a directory of a million names with one lookup is not scanned.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Sequence
from typing import Final, final

from unionfs import markers
from unionfs.core import marks
from unionfs.core.attrs import IFDIR
from unionfs.core.branch import Branch, BranchDir, Stat
from unionfs.core.namecache import NameCache

KIND_SHIFT: Final = 12
"""S_IFMT bits start here: a file type fits in four bits."""
_INO_SHIFT: Final = 4
_STACK_SHIFT: Final = 68  # four bits of kind and 64 of inode number lie below

_BYTES_PER_NAME: Final = 32  # of st_size of a directory, roughly, on ext4 and tmpfs: only steers when a scan pays
_STAT_EVERY: Final = 32  # wasted probes before the size of a directory is read


@final
class Found:
    """The result of a lookup in the lowers: a file in `place`, or (kind S_IFDIR) the merged directory `low`.
    Immutable."""

    __slots__ = ("kind", "place", "name", "low", "st")

    def __init__(self, kind: int, place: BranchDir, name: bytes, low: LowDir | None, st: Stat | None) -> None:
        self.kind = kind
        self.place = place
        self.name = name
        self.low = low
        self.st = st  # attributes if the walk happened to fetch them


class _Walk:
    """The state of a search for one name down the branches."""

    __slots__ = ("name", "stack", "top_st", "calls")

    def __init__(self, name: bytes) -> None:
        self.name = name  # immutable
        self.stack: list[BranchDir] = []  # the directories found so far, top first
        self.top_st: Stat | None = None  # attributes of the first of them, if they were fetched
        self.calls = 0  # system calls, about


class LowDir:
    """A directory merged from one or more lowers. Its content never changes; its remembered names can be dropped."""

    __slots__ = (
        "tree", "parent", "name", "stack", "names", "stacks", "wasted", "weight", "subdirs", "cached_use", "protection",
    )  # fmt: skip

    def __init__(self, tree: LowerTree, parent: LowDir | None, name: bytes, stack: tuple[BranchDir, ...]) -> None:
        self.tree = tree  # this and `parent` are changed by core.branches only
        self.parent = parent  # None for the root
        self.name = name  # immutable: in the union of the lowers, whatever the upper calls it
        self.stack = stack  # top first, never empty; changed by core.branches, of the root by core.external_changes
        self.names: dict[bytes, int] | None = None  # name -> packed (index into `stacks`, ino, kind); None: not scanned
        self.stacks: list[tuple[int, ...]] = []  # positions in `stack`; entry 0 is the commonest, (0,)
        self.wasted = 0  # system calls that a scan would have saved
        self.weight = -1  # names expected in here; -1: not estimated yet
        self.subdirs = -1  # directories among `names`; -1: not counted yet
        self.protection = -1  # belongs to core.inode_flags: immutable, append-only; -1: not read yet
        self.cached_use = False  # belongs to the name cache

    # -- names -----------------------------------------------------------------------------------------------------

    def find(self, name: bytes) -> Found | None:
        """Find `name`, or return None. Raises EACCES where a branch may not be searched (unless such are skipped)."""
        names = self.names
        if names is None:
            if not self._scan_pays():
                return self._probe(name)
            names = self.load()
        self.cached_use = True
        code = names.get(name)
        if code is None:
            return None
        kind = (code & 0xF) << KIND_SHIFT
        positions = self.stacks[code >> _STACK_SHIFT]
        if kind != IFDIR:
            return Found(kind, self.stack[positions[0]], name, None, None)
        return self.tree.walk_one(self, [self.stack[position] for position in positions], name)[0]

    def _probe(self, name: bytes) -> Found | None:
        found, calls = self.tree.walk_one(self, self.stack, name)
        self.wasted += calls if found is None else calls - 1
        return found

    def _scan_pays(self) -> bool:
        if self.wasted < _STAT_EVERY:
            return False
        if self.weight < 0:
            self.weight = sum(place.stat().st_size for place in self.stack if place.recorded is None) // _BYTES_PER_NAME
        return self.wasted * 2 >= self.weight

    def load(self) -> dict[bytes, int]:
        """Scan every branch directory and remember all names. Raises EACCES like `find`."""
        if self.names is not None:
            self.cached_use = True
            return self.names
        if len(self.stack) == 1:
            lines = self.tree.entries(self.stack[0], [])
            self.stacks = [(0,)]
            self.names = {name: (ino << _INO_SHIFT) | (kind >> KIND_SHIFT) for name, kind, ino in lines}
            self.tree.cache.add(self, len(self.names))
            return self.names
        names: dict[bytes, int] = {}
        stacks: list[tuple[int, ...]] = [(0,)]
        index_of: dict[tuple[int, ...], int] = {(0,): 0}
        closed: set[bytes] = set()  # names that no lower branch may add to
        merging: dict[bytes, list[int]] = {}  # directories present in more than one branch
        last = len(self.stack) - 1
        for position, place in enumerate(self.stack):
            hidden: list[bytes] = []
            for name, kind, ino in self.tree.entries(place, hidden):
                if name in closed:
                    continue
                known = names.get(name)
                if known is not None:
                    if kind == stat.S_IFDIR:
                        merging.setdefault(name, [known >> _STACK_SHIFT]).append(position)
                    else:
                        closed.add(name)
                    continue
                names[name] = (position << _STACK_SHIFT) | (ino << _INO_SHIFT) | (kind >> KIND_SHIFT)
                if kind != stat.S_IFDIR and position != last:
                    closed.add(name)
            closed.update(hidden)
        for name, code in names.items():
            positions = tuple(merging.get(name, (code >> _STACK_SHIFT,)))
            index = index_of.get(positions)
            if index is None:
                index = index_of[positions] = len(stacks)
                stacks.append(positions)
            names[name] = (index << _STACK_SHIFT) | (code & ((1 << _STACK_SHIFT) - 1))
        self.names, self.stacks = names, stacks
        self.tree.cache.add(self, len(names))
        return names

    def name_count(self) -> int:
        """Return the number of remembered names."""
        return len(self.names) if self.names is not None else 0

    def forget_names(self) -> None:
        """Drop the remembered names; the directory can be scanned again."""
        self.names = None
        self.stacks = []
        self.wasted = 0

    def listing(self) -> list[tuple[bytes, int, int]]:
        """List (name, kind, ino as the branch numbers it) of all entries; `ino` still lacks its filesystem's index."""
        return [
            (name, (code & 0xF) << KIND_SHIFT, (code >> _INO_SHIFT) & 0xFFFFFFFFFFFFFFFF)
            for name, code in self.load().items()
        ]

    def place_of(self, code: int, stacks: list[tuple[int, ...]]) -> BranchDir:
        """Return the branch directory of an entry `code` that was packed with `stacks`."""
        return self.stack[stacks[code >> _STACK_SHIFT][0]]

    # -- attributes ------------------------------------------------------------------------------------------------

    def stat(self) -> Stat:
        """Return the attributes of the merged directory: those of its topmost branch."""
        return self.stack[0].stat()

    def nlink(self, top: Stat) -> int:
        """Return the link count: two plus the subdirectories, as most filesystems count, or 1 if the branch does not
        count (btrfs)."""
        if len(self.stack) == 1 or top.st_nlink < 2:
            return top.st_nlink
        if self.subdirs < 0:
            if not any(place.has_directories() for place in self.stack[1:]):
                return top.st_nlink
            self.subdirs = sum(1 for code in self.load().values() if code & 0xF == stat.S_IFDIR >> KIND_SHIFT)
        return 2 + self.subdirs

    def path_components(self) -> tuple[bytes, ...]:
        """Return the path components from the root of the union of the lowers down to here."""
        names: list[bytes] = []
        at: LowDir | None = self
        while at is not None and at.parent is not None:
            names.append(at.name)
            at = at.parent
        return tuple(reversed(names))


class LowerTree:
    """All lowers of a union, top first."""

    def __init__(self, branches: Sequence[Branch], cache: NameCache, *, skip_unreadable: bool) -> None:
        self.branches = tuple(branches)  # immutable
        self.cache = cache  # immutable
        self.skip_unreadable = skip_unreadable  # immutable: unreadable directories count as missing
        self._positions = {branch: index for index, branch in enumerate(self.branches)}  # immutable; 0 = top
        self.root = LowDir(self, None, b"", self.root_stack())

    def position(self, place: BranchDir) -> int:
        """Return the position of a directory's branch among the lowers, 0 = top."""
        return self._positions[place.branch]

    def root_stack(self) -> tuple[BranchDir, ...]:
        """Return the roots of the branches, down to the first that is opaque."""
        stack = []
        for branch in self.branches:
            stack.append(branch.root)
            if marks.read_dir_marks(branch.root, bottom=len(stack) == len(self.branches)).opaque:
                break
        return tuple(stack)

    def walk_one(self, parent: LowDir, candidates: Sequence[BranchDir], name: bytes) -> tuple[Found | None, int]:
        """Find `name` in `candidates`, top first. Also returns the approximate number of system calls made.

        The walk ends at the first of: a whiteout, an opaque directory, anything that is not a directory; a redirect
        sends it to another place in the branches beneath.
        """
        walk = _Walk(name)
        last = len(candidates) - 1
        for position, place in enumerate(candidates):
            ends = self._step_in_memory(walk, parent, place, last=position == last)
            if ends is not None:
                if ends:
                    break
                continue
            walk.calls += 1
            try:
                st = place.stat_entry(name)
            except FileNotFoundError:
                if position != last:
                    walk.calls += 1
                    if marks.has_aufs_whiteout(place, name):
                        break
                continue
            except OSError as exc:
                if self._is_skipped(exc):
                    continue
                raise
            if not stat.S_ISDIR(st.st_mode):
                if walk.stack or marks.is_whiteout(place, name, st):
                    break
                return Found(stat.S_IFMT(st.st_mode), place, name, None, st), walk.calls
            if self._enter(walk, parent, place, st, last=position == last):
                break
        if not walk.stack:
            return None, walk.calls
        top = walk.stack[0]
        low = LowDir(self, parent, name, tuple(walk.stack))
        return Found(stat.S_IFDIR, top.parent or top, name, low, walk.top_st), walk.calls

    def _step_in_memory(self, walk: _Walk, parent: LowDir, place: BranchDir, *, last: bool) -> bool | None:
        """Search one directory if its names are in memory. Returns whether the walk ends there; None: the entry must be
        read from the branch."""
        name = walk.name
        if place.sealed:
            return False
        if place.is_sealed(name):
            walk.stack.append(place.child(name))
            return False
        if place.recorded is None:
            return None
        if name not in place.recorded.names:
            return not last and marks.has_aufs_whiteout(place, name)
        return (
            self._enter(walk, parent, place, None, last=last) if walk.stack and name in place.recorded.below else None
        )

    def _enter(self, walk: _Walk, parent: LowDir, place: BranchDir, st: Stat | None, *, last: bool) -> bool:
        """Add the directory found in `place` to the stack; True if the walk ends with it. `st`: its attributes, unless
        it is not the first and recorded."""
        name = walk.name
        child = place.child(name)
        if st is not None and st.st_dev != place.branch.dev and place.is_elsewhere(st, name):
            child.sealed = True
        if not walk.stack:
            walk.top_st = child.sealed_stat() if child.sealed else st
        walk.stack.append(child)
        if child.sealed:
            return False
        walk.calls += 2
        try:
            seen = marks.read_dir_marks(child, bottom=last)
        except OSError as exc:
            if self._is_skipped(exc):
                return False
            raise
        if seen.redirect is not None and not seen.opaque:
            # A sibling may be in branches that do not have `name`, so `candidates` are too few to look in.
            siblings = [other for other in parent.stack if self.position(other) > self.position(place)]
            walk.stack.extend(self._redirected(child, seen.redirect, siblings))
            return True
        return seen.opaque or (not last and marks.has_aufs_whiteout(place, name))

    def _redirected(self, child: BranchDir, redirect: bytes, siblings: Sequence[BranchDir]) -> tuple[BranchDir, ...]:
        """Return the directories that the redirect of a lower directory leads to; none if it leads nowhere."""
        components = markers.redirect_components(redirect)
        if components is None:
            parent = LowDir(self, None, b"", tuple(siblings)) if siblings else None
            found = self.walk_one(parent, siblings, redirect)[0] if parent is not None else None
        else:
            found = self.walk(components, self.position(child) + 1)
        return found.low.stack if found is not None and found.kind == stat.S_IFDIR and found.low is not None else ()

    def data_place(self, parent: LowDir, place: BranchDir, name: bytes) -> tuple[BranchDir, bytes]:
        """Return where the data of the file `name` in `place`, found in `parent`, are: there, or for a metacopy in a
        branch beneath. Raises EIO when the data are missing."""
        while marks.is_metacopy(place, name):
            if marks.is_partial(place, name):
                raise OSError(errno.EIO, "a lower file has only a part of its data", os.fsdecode(name))
            beneath = self.position(place) + 1
            redirect = marks.metacopy_redirect(place, name)
            components = markers.redirect_components(redirect) if redirect is not None else None
            if components:
                holder = self.walk(components[:-1], beneath)
                stack = holder.low.stack if holder is not None and holder.low is not None else ()
                name = components[-1]
            else:
                stack = tuple(other for other in parent.stack if self.position(other) >= beneath)
                name = redirect or name
            found = None
            if stack:
                parent = LowDir(self, None, b"", stack)
                found = self.walk_one(parent, stack, name)[0]
            if found is None or found.kind != stat.S_IFREG:
                raise OSError(errno.EIO, "the data of a metadata-only file are missing", os.fsdecode(name))
            place = found.place
        return place, name

    def walk(self, components: Iterable[bytes], first: int = 0) -> Found | None:
        """Follow `components` from the root of the union of the lowers, using only the lowers from index `first` on."""
        roots = tuple(place for place in self.root.stack if self.position(place) >= first)
        if not roots:
            return None
        here = self.root if first == 0 else LowDir(self, None, b"", roots)
        found: Found | None = Found(stat.S_IFDIR, roots[0], b"", here, None)
        for name in components:
            if found is None or found.kind != stat.S_IFDIR or found.low is None:
                return None
            found = found.low.find(name)
        return found

    def _is_skipped(self, exc: OSError) -> bool:
        """Whether an error in a branch counts as a missing name."""
        if exc.errno == errno.ENOTDIR:
            return True
        return self.skip_unreadable and exc.errno in (errno.EACCES, errno.EPERM)

    def entries(self, place: BranchDir, hidden: list[bytes]) -> list[tuple[bytes, int, int]]:
        """List (name, kind, ino) of the real entries of one branch directory; whiteouts go into `hidden`."""
        found: list[tuple[bytes, int, int]] = []
        try:
            for name, kind, ino in place.scan():
                if markers.is_reserved(name):
                    mark = markers.hidden_name(name)
                    if mark is not None:
                        hidden.append(mark)
                    continue
                if kind == stat.S_IFCHR or (kind == stat.S_IFREG and place.has_xattr_whiteouts):
                    st = os.stat(name, dir_fd=place.fd(), follow_symlinks=False)
                    if marks.is_whiteout(place, name, st):
                        hidden.append(name)
                        continue
                if kind == stat.S_IFREG and place.branch.overrides is not None:
                    found.append((name, place.branch.overrides.kind_of(place, name), ino))
                    continue
                found.append((name, kind, ino))
        except OSError as exc:
            if not self._is_skipped(exc):
                raise
        return found
