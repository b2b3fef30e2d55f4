"""The rule of the union: look up a name in a directory that is merged from directories of several branches.

The branches are searched from the top down. The walk ends at the first of: a whiteout, anything that is not a
directory, an opaque directory, a redirected one. A directory below a file is hidden by that file and never merged.
If marks contradict each other: an opaque mark within a directory has priority over its redirect, and the redirect over
a whiteout beside the directory; a whiteout beside a file has no effect.

Pure: the caller reads the branches (`Reader`). `core.lower` follows the same rule with its own
cache; a test checks that both are equal.
"""

from __future__ import annotations

import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Final, Generic, NamedTuple, TypeVar

from unionfs import markers

P = TypeVar("P")
"""The path of a file or directory in one branch, whatever form it has."""

T = TypeVar("T")
"""Further values of a file or directory, chosen by the caller."""

ABSENT: Final = "absent"  # no entry: the walk goes on
WHITEOUT: Final = "whiteout"  # no entry, and nothing below shows
FILE: Final = "file"  # visible, and nothing below shows
COVERED: Final = "covered"  # a file below a directory: neither it nor anything below it shows
DIRECTORY: Final = "directory"  # merged with the branches below
OPAQUE: Final = "opaque"  # a directory below which nothing shows
REDIRECTED: Final = "redirected"  # a directory that is merged with what its redirect leads to

_GOES_ON: Final = (ABSENT, DIRECTORY)


class Entry(NamedTuple, Generic[P, T]):
    """The entry of a directory of one branch under a name, with its marks."""

    path: P | None = None  # None: there is no entry, or only a mark
    object: T | None = None  # None exactly if `path` is
    kind: int = 0  # S_IFMT bits
    whiteout: str = ""  # the dialect of a whiteout of the name; empty: there is none
    opaque: str = ""  # of a directory: the dialect of the opaque mark in it
    redirect: bytes | None = None  # of a directory or metacopy file: where it continues; a sane value
    metacopy: bool = False  # a file that has only its attributes here
    sealed: bool = False  # a directory that shows as empty and must not be read


class Found(NamedTuple, Generic[P, T]):
    """The result of a lookup in a merged directory."""

    path: P  # of the object that shows
    object: T
    kind: int
    stack: tuple[P, ...]  # of a directory: the branches' directories to read, top first
    data: P  # of a file: the path of its bytes; `path` if they are lost


class Reader(ABC, Generic[P, T]):
    """Branches that are merged, read one directory and one name at a time."""

    @abstractmethod
    def entry(self, directory: P, name: bytes) -> Entry[P, T]:
        """The entry `name`, which is not a mark itself, of `directory` of one branch. Raises: OSError."""

    @abstractmethod
    def roots(self) -> Sequence[P]:
        """The roots of the branches, top first, down to the first opaque one."""

    @abstractmethod
    def branch_of(self, path: P) -> int:
        """The branch's number, which grows from the top down."""


class Step(NamedTuple, Generic[P, T]):
    """The contribution of one branch to a name."""

    directory: P  # the directory that was searched
    entry: Entry[P, T]
    outcome: str  # ABSENT ... REDIRECTED
    below: tuple[P, ...]  # directories of the branches below; not searched if the walk ends here


def outcome(entry: Entry[P, T], *, is_under_directory: bool = False) -> str:
    """Classify an entry for the walk; `is_under_directory`: a branch above has a directory of the same name."""
    if entry.path is None:
        return WHITEOUT if entry.whiteout else ABSENT
    if not stat.S_ISDIR(entry.kind):
        return COVERED if is_under_directory else FILE
    if entry.sealed:
        return DIRECTORY
    if entry.opaque:
        return OPAQUE
    if entry.redirect is not None:
        return REDIRECTED
    return OPAQUE if entry.whiteout else DIRECTORY


def steps(reader: Reader[P, T], stack: Sequence[P], name: bytes) -> Iterator[Step[P, T]]:
    """The walk itself: a step for each branch's directory in `stack`, down to where it ends."""
    is_under_directory = False
    for depth, directory in enumerate(stack):
        entry = reader.entry(directory, name)
        said = outcome(entry, is_under_directory=is_under_directory)
        yield Step(directory, entry, said, tuple(stack[depth + 1 :]))
        if said not in _GOES_ON:
            return
        is_under_directory = is_under_directory or said == DIRECTORY


def lookup(reader: Reader[P, T], stack: Sequence[P], name: bytes) -> Found[P, T] | None:
    """Look up `name` in the merged directory `stack`; None if it is missing or hidden. Raises: OSError."""
    top: Entry[P, T] | None = None
    below: list[P] = []
    for step in steps(reader, stack, name):
        entry = step.entry
        if entry.path is None or entry.object is None or step.outcome == COVERED:
            continue
        if step.outcome == FILE:
            data = entry.path
            if entry.metacopy:
                data = metacopy_data(reader, step.below, name, entry.redirect, entry.path)
            return Found(entry.path, entry.object, entry.kind, (), data)
        top = top or entry
        if not entry.sealed:
            below.append(entry.path)
        if step.outcome == REDIRECTED and entry.redirect is not None:
            below.extend(redirected(reader, step.below, entry.redirect, reader.branch_of(entry.path) + 1))
    if top is None or top.path is None or top.object is None:
        return None
    return Found(top.path, top.object, top.kind, tuple(below), top.path)


def redirected(reader: Reader[P, T], siblings: Sequence[P], redirect: bytes, first: int) -> tuple[P, ...]:
    """The target of a redirect: a path in the branches from `first` on, or a name among `siblings`."""
    found = _follow(reader, siblings, redirect, first)
    return found.stack if found is not None else ()


def metacopy_data(reader: Reader[P, T], siblings: Sequence[P], name: bytes, redirect: bytes | None, own: P) -> P:
    """The path of the bytes of a file that has only its attributes at `own`; `own` itself if the bytes are lost."""
    found = _follow(reader, siblings, redirect or name, reader.branch_of(own) + 1)
    return found.data if found is not None and stat.S_ISREG(found.kind) else own


def find(reader: Reader[P, T], stack: Sequence[P], names: Sequence[bytes]) -> Found[P, T] | None:
    """Look up the path `names`, not empty, below the merged directory `stack`. Raises: OSError."""
    found: Found[P, T] | None = None
    for name in names:
        found = lookup(reader, stack, name)
        if found is None:
            return None
        stack = found.stack
    return found


def _follow(reader: Reader[P, T], siblings: Sequence[P], redirect: bytes, first: int) -> Found[P, T] | None:
    components = markers.redirect_components(redirect)
    if components is None:
        return lookup(reader, siblings, redirect)
    return find(reader, [root for root in reader.roots() if reader.branch_of(root) >= first], components)
