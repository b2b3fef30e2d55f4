"""Find the changes of a fork that conflict with those that its parent has made since the fork.

Both are lists of changes of the same base (`listing`). These conflict (docs/forks.md has the same as a table): a path
that both changed to different results; a path that one deleted or replaced while the other changed it or a path below
it. Equal results, deletions by both, and different names in one directory do not conflict; a directory conflicts only
if both changed its mode, owner or attributes. Times alone never conflict. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Final, NamedTuple

from unionfs import markers
from unionfs.changes.compare import MTIME
from unionfs.changes.listing import ADDED, DELETED, Change
from unionfs.changes.lowers import Stack
from unionfs.changes.objects import Branches, BranchPath, Object
from unionfs.trees import walk

_WORDS: Final = {ADDED: "added", DELETED: "deleted"}


class Conflict(NamedTuple):
    """A change of the fork that the parent's changes contradict."""

    path: bytes  # of the fork's change
    fork: str  # the change in words
    parent_path: bytes  # of the parent's change: `path`, or above or below it
    parent: str  # the parent's change in words


Equal = Callable[[Object, Object], bool]
"""Whether an object of the fork and one of the parent are equal in all but times."""


def is_passage(change: Change) -> bool:
    """Whether a directory is listed only because of changes below it."""
    new, old = change.new, change.old
    return old is not None and new is not None and new.is_dir and old.is_dir and set(change.what) <= {MTIME}


def own(changes: Iterable[Change]) -> list[Change]:
    """The changes without directories that are listed only because of changes below them."""
    return [change for change in changes if not is_passage(change)]


def conflicts(fork: Iterable[Change], parent: Iterable[Change], equal: Equal) -> list[Conflict]:
    """The changes of the fork that conflict with those of the parent, in the order of `fork`."""
    theirs, ours = own(fork), {change.path: change for change in own(parent)}
    below: dict[bytes, Change] = {}  # a directory -> a path below it that the parent made or changed
    for change in ours.values():
        if change.new is not None:
            for path in above(change.path):
                below.setdefault(path, change)
    if not ours:
        return []
    replaced: dict[bytes, Change | None] = {}  # a directory of the fork -> the parent's change of a directory above it
    return [found for change in theirs if (found := _conflict(change, ours, below, replaced, equal)) is not None]


def above(path: bytes) -> Iterator[bytes]:
    """The directories above a path, the nearest first, without the root."""
    while path := path.rpartition(b"/")[0]:
        yield path


def _conflict(
    change: Change,
    ours: dict[bytes, Change],
    below: dict[bytes, Change],
    replaced: dict[bytes, Change | None],
    equal: Equal,
) -> Conflict | None:
    there = ours.get(change.path)
    if there is not None and not _agree(change, there, equal):
        return _told(change, there)
    if change.new is None or not change.new.is_dir:
        there = below.get(change.path)
        if there is not None:
            return _told(change, there)
    if change.new is None:
        return None
    directory = change.path.rpartition(b"/")[0]
    if directory not in replaced:
        replaced[directory] = next(filter(_is_replaced, map(ours.get, above(change.path))), None)
    there = replaced[directory]
    return None if there is None else _told(change, there)


def _is_replaced(there: Change | None) -> bool:
    """Whether a change leaves no directory."""
    return there is not None and (there.new is None or not there.new.is_dir)


def _agree(change: Change, there: Change, equal: Equal) -> bool:
    if change.new is None or there.new is None:
        return change.new is there.new
    return equal(change.new, there.new)


def _told(change: Change, there: Change) -> Conflict:
    return Conflict(change.path, _words(change), there.path, _words(there))


def _words(change: Change) -> str:
    return _WORDS.get(change.kind) or f"changed ({', '.join(change.what)})"


def hidden(fork: Branches, theirs: Collection[Change], parent: Iterable[Change]) -> list[Change] | None:
    """The changes of the parent that must be made again on top if the fork's own branches are put on the parent's: of
    the attributes of directories which the fork has, too, and has not changed. None: the fork's branches have entries,
    changed or only copied up, that would hide other changes or take data from them. Precondition: nothing conflicts, or
    the fork's changes are wanted where it does."""
    known = _roots(fork)
    wanted = {change.path: change.new for change in own(theirs)}
    replaces = False  # whether the fork's branches hide a file that the parent has changed
    again = []
    for change in own(parent):
        above_it, _, name = change.path.rpartition(b"/")
        if not name:  # the mode of the root
            return None
        stack = _own_directories(fork, above_it, known)
        below = _own_entry(fork, stack, name) if stack is not None else None
        new, same = change.new, wanted.get(change.path)
        if below is None:
            # If it was a directory, a redirect may lead to it.
            if stack is None or same is None or same.is_dir or (change.old is not None and change.old.is_dir):
                return None
            replaces = True
        elif below:
            if new is None or not new.is_dir:
                return None
            if same is None:
                again.append(change)
    return None if replaces and any(_has_data_below(fork, change.new) for change in theirs) else again


def concerned(fork: Branches) -> Callable[[bytes], set[bytes] | None]:
    """Select the paths at which changes of the parent may conflict with those of the fork, or may be hidden by its own
    branches: in a directory that these have with others merged below it, the names that they have, else all names. The
    result is for listing.changes of the parent."""
    known = _roots(fork)

    def names(path: bytes) -> set[bytes] | None:
        stack = _own_directories(fork, path, known)
        if not stack:
            return None
        listed = [name for place in stack for name in fork.names(place)]
        hidden_names = (markers.hidden_name(name) for name in listed if markers.is_reserved(name))
        return {*(name for name in listed if not markers.is_reserved(name)), *filter(None, hidden_names)}

    return names


def _roots(fork: Branches) -> dict[bytes, Stack]:
    return {b"": tuple(BranchPath(branch, b"") for branch in range(fork.own))}


def _has_data_below(fork: Branches, new: Object | None) -> bool:
    """Whether a file has only its attributes in the fork's own branches."""
    return new is not None and not new.is_dir and new.data.branch >= fork.own


def _own_directories(fork: Branches, path: bytes, known: dict[bytes, Stack]) -> Stack | None:
    """The directories of the fork's own branches at a path, as of `_own_entry`. `known`: those of some paths; grows."""
    if path in known:
        return known[path]
    above_it, _, name = path.rpartition(b"/")
    stack = _own_directories(fork, above_it, known)
    if not stack:
        return stack
    found = _own_entry(fork, stack, name)
    if found is not None:
        known[path] = found
    return found


def _own_entry(fork: Branches, stack: Stack, name: bytes) -> Stack | None:
    """The directories of the fork's own branches under a name; () where there is no entry, None for anything that hides
    what is below it."""
    found = []
    for directory in stack:
        entry = fork.entry(directory, name)
        said = walk.outcome(entry)
        if said == walk.DIRECTORY and entry.path is not None:
            found.append(entry.path)
        elif said != walk.ABSENT:
            return None
    return tuple(found)
