"""What the layers of a stack do to each other: which bytes show, which are hidden and by whom, which are there twice.

Pure: takes pieces, gives numbers. A byte is hidden when a higher layer replaces or removes its file; it still travels
with every pull. The stack is read from the bottom up, as it was made.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from layers.entry import DIRECTORY, FILE, LINK, OPAQUE, SYMLINK, WHITEOUT
from layers.pieces import Piece
from layers.safe_open import Path

REPLACED: Final = "replaced"
EQUAL: Final = "replaced by the same content"
REMOVED: Final = "removed"


class Shown(NamedTuple):
    """A file of one layer."""

    path: Path
    layer: int  # counted from the bottom, beginning with 0
    piece: Piece


class Hidden(NamedTuple):
    """A file that does not show, and why."""

    file: Shown
    by: int  # the layer
    how: str  # REPLACED, EQUAL or REMOVED


@dataclass(slots=True)
class Layer:
    """One layer of the stack in numbers. Filled by `weigh` only."""

    stored: int = 0  # bytes of its files
    hidden: int = 0  # of these, bytes that do not show
    files: int = 0
    directories: int = 0
    symlinks: int = 0
    links: int = 0  # further names of files
    special: int = 0  # devices, fifos, sockets
    whiteouts: dict[str, int] = field(default_factory=dict)  # by dialect
    opaque: dict[str, int] = field(default_factory=dict)  # by dialect
    redirects: int = 0

    def count(self, piece: Piece) -> None:
        kind = piece.entry.kind
        self.stored += piece.stored
        self.redirects += piece.redirect is not None
        if kind == FILE:
            self.files += 1
        elif kind == DIRECTORY:
            self.directories += 1
        elif kind == SYMLINK:
            self.symlinks += 1
        elif kind == LINK:
            self.links += 1
        elif kind == WHITEOUT:
            self.whiteouts[piece.dialect] = self.whiteouts.get(piece.dialect, 0) + 1
        elif kind == OPAQUE:
            self.opaque[piece.dialect] = self.opaque.get(piece.dialect, 0) + 1
        else:
            self.special += 1


@dataclass(slots=True)
class Weight:
    """A whole stack."""

    layers: list[Layer] = field(default_factory=list)  # bottom first
    shown: list[Shown] = field(default_factory=list)  # files, as they are found
    hidden: list[Hidden] = field(default_factory=list)

    @property
    def stored(self) -> int:
        return sum(layer.stored for layer in self.layers)

    @property
    def efficiency(self) -> float:
        """Which part of the stored bytes shows; 1 for an image of one layer."""
        wasted = sum(layer.hidden for layer in self.layers)
        return 1 - wasted / self.stored if self.stored else 1.0

    def duplicates(self) -> list[list[Shown]]:
        """Files that show and have the same content, those first that cost most."""
        groups: dict[tuple[str, int], list[Shown]] = defaultdict(list)
        for one in self.shown:
            if one.piece.content and one.piece.stored:
                groups[one.piece.content, one.piece.entry.size].append(one)
        found = [sorted(group) for group in groups.values() if len(group) > 1]
        return sorted(found, key=lambda group: (-(len(group) - 1) * group[0].piece.stored, group[0].path))


class _Node:
    """One name of the stack as far as it has been read."""

    __slots__ = ("below", "file")

    def __init__(self) -> None:
        self.below: dict[bytes, _Node] = {}
        self.file: int | None = None  # its place in _Stack.files; None: a directory


def weigh(layers: Iterable[Iterable[Piece]]) -> Weight:
    """The layers of a stack, bottom first. Raises what reading the pieces raises."""
    stack = _Stack()
    for pieces in layers:
        stack.add(pieces)
    return stack.weight()


class _Stack:
    def __init__(self) -> None:
        self.root = _Node()
        self.layers: list[Layer] = []
        self.files: list[Shown] = []  # all that any layer brought
        self.hidden: dict[int, Hidden] = {}  # by their places in `files`

    def add(self, pieces: Iterable[Piece]) -> None:
        """One layer on top. Its marks act on what is beneath only, wherever among the pieces they stand."""
        number = len(self.layers)
        layer = Layer()
        self.layers.append(layer)
        marks: list[Piece] = []
        brought: list[Piece] = []
        moved: list[tuple[Path, _Node]] = []
        for piece in pieces:
            layer.count(piece)
            (marks if piece.entry.kind in (WHITEOUT, OPAQUE) else brought).append(piece)
            if piece.redirect is not None and (source := self._find(piece.redirect)) is not None:
                moved.append((piece.entry.path, source))
        for piece in marks:
            node = self._find(piece.entry.path)
            if node is not None and piece.entry.kind == OPAQUE:
                self._hide_below(node, number, REMOVED)
            elif node is not None and piece.entry.path:
                self._hide(node, number, REMOVED)
                del self._place(piece.entry.path[:-1]).below[piece.entry.path[-1]]
        for path, source in moved:  # a redirected directory: the whiteout at its old name has just hidden its files
            self._show_again(source)
            self._place(path[:-1]).below[path[-1]] = source
        for piece in brought:
            self._bring(piece, number)

    def weight(self) -> Weight:
        result = Weight(self.layers)
        for path, node in _walk(self.root):
            if node.file is not None:
                result.shown.append(self.files[node.file]._replace(path=path))
        result.hidden = list(self.hidden.values())
        for one in result.hidden:
            self.layers[one.file.layer].hidden += one.file.piece.stored
        return result

    def _bring(self, piece: Piece, number: int) -> None:
        path = piece.entry.path
        if not path:
            return
        node = self.root
        for name in path[:-1]:  # something below a file of the layers beneath: the file is gone
            node = node.below.setdefault(name, _Node())
            if node.file is not None:
                self._hide_file(node, number, REPLACED)
        node = node.below.setdefault(path[-1], _Node())
        if piece.entry.kind == DIRECTORY:
            if node.file is not None:
                self._hide_file(node, number, REPLACED)
            return
        self._hide_below(node, number, REPLACED)
        if node.file is not None:
            same = bool(piece.content) and piece.content == self.files[node.file].piece.content
            self._hide_file(node, number, EQUAL if same else REPLACED)
        node.file = len(self.files)
        self.files.append(Shown(path, number, piece))

    def _find(self, path: Path) -> _Node | None:
        node: _Node | None = self.root
        for name in path:
            node = node.below.get(name) if node is not None else None
        return node

    def _place(self, path: Path) -> _Node:
        node = self.root
        for name in path:
            node = node.below.setdefault(name, _Node())
        return node

    def _hide(self, node: _Node, by: int, how: str) -> None:
        for _, below in _walk(node):
            if below.file is not None:
                self.hidden[below.file] = Hidden(self.files[below.file], by, how)

    def _hide_below(self, node: _Node, by: int, how: str) -> None:
        for below in node.below.values():
            self._hide(below, by, how)
        node.below = {}

    def _hide_file(self, node: _Node, by: int, how: str) -> None:
        assert node.file is not None
        self.hidden[node.file] = Hidden(self.files[node.file], by, how)
        node.file = None

    def _show_again(self, node: _Node) -> None:
        for _, below in _walk(node):
            if below.file is not None:
                self.hidden.pop(below.file, None)


def _walk(top: _Node) -> Iterator[tuple[Path, _Node]]:
    """The node and all below it, with their paths from it. No recursion: paths may be deeper than Python's stack."""
    todo: list[tuple[Path, _Node]] = [((), top)]
    while todo:
        path, node = todo.pop()
        yield path, node
        todo += [((*path, name), below) for name, below in node.below.items()]


class Act(NamedTuple):
    """What one layer does to one path."""

    layer: int
    what: str  # see `acts`
    at: Path  # the path that says so: the path itself, or one above it
    piece: Piece | None  # what it brings there
    files: int = 0  # below the path, that the layer brings
    stored: int = 0  # their bytes


BRINGS: Final = "brings"
HIDES: Final = "hides"  # by a whiteout of it, or of a directory above
EMPTIES: Final = "empties"  # by an opaque mark on it, or on a directory above
COVERS: Final = "covers"  # with something above it that is no directory
PASSES: Final = "passes through"  # it brings something below, and does not say what the directory is like


def acts(layers: Sequence[Iterable[Piece]], path: Path) -> list[Act]:
    """What each layer of a stack, bottom first, does to a path: as many acts as there are, by layer, bottom first."""
    found = []
    for number, pieces in enumerate(layers):
        here: list[Act] = []
        files = stored = 0
        for piece in pieces:
            at = piece.entry.path
            is_above = len(at) < len(path) and path[: len(at)] == at
            if piece.entry.kind == WHITEOUT:
                if at == path or is_above:
                    here.append(Act(number, HIDES, at, None))
            elif piece.entry.kind == OPAQUE:
                if at == path or is_above:
                    here.append(Act(number, EMPTIES, at, None))
            elif at == path:
                here = [act for act in here if act.what != BRINGS]  # the later of two entries counts
                here.append(Act(number, BRINGS, at, piece))
            elif is_above and piece.entry.kind != DIRECTORY:
                here.append(Act(number, COVERS, at, piece))
            elif len(at) > len(path) and at[: len(path)] == path:
                files += piece.entry.kind != DIRECTORY
                stored += piece.stored
        if files and not any(act.what == BRINGS for act in here):
            here.append(Act(number, PASSES, path, None))
        found += [act._replace(files=files, stored=stored) if act.at == path else act for act in here]
    return found


def showing(found: list[Act]) -> set[int]:
    """Which of the acts, bottom layer first, are what shows: the topmost that brings the path, and for a directory
    also what layers beneath bring to it, down to where something stops that."""
    shown: set[int] = set()
    for number in sorted({act.layer for act in found}, reverse=True):
        here = {at: act for at, act in enumerate(found) if act.layer == number}
        brought = [at for at, act in here.items() if act.what in (BRINGS, PASSES)]
        covered = any(act.what == COVERS for act in here.values())
        is_directory = all((piece := here[at].piece) is None or piece.entry.kind == DIRECTORY for at in brought)
        if brought and not covered and (is_directory or not shown):
            shown.update(brought)
        stops = covered or any(act.what in (HIDES, EMPTIES) for act in here.values())
        if stops or (brought and not is_directory):
            return shown
    return shown
