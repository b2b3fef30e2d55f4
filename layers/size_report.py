"""Measure a stack of layers: visible bytes, bytes hidden by which layer, files stored twice; explain one path.

Pure: takes pieces, gives numbers. A file is hidden when a higher layer replaces or removes it; it is still transferred
by every pull. The stack is read from the bottom up, as it was built.
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


class LayerFile(NamedTuple):
    """A file stored in one layer."""

    path: Path
    layer: int  # counted from the bottom, beginning with 0
    piece: Piece


class HiddenFile(NamedTuple):
    """A file that does not show, and the layer that hides it."""

    file: LayerFile
    by: int  # that layer, counted as above
    how: str  # REPLACED, EQUAL or REMOVED


@dataclass(slots=True)
class LayerSizes:
    """The sizes and counts of one layer. Filled by `measure` only."""

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
class SizeReport:
    """The sizes of a whole stack."""

    layers: list[LayerSizes] = field(default_factory=list)  # bottom first
    visible: list[LayerFile] = field(default_factory=list)  # files that show, at the paths where they show
    hidden: list[HiddenFile] = field(default_factory=list)

    @property
    def stored(self) -> int:
        return sum(layer.stored for layer in self.layers)

    @property
    def efficiency(self) -> float:
        """The visible part of the stored bytes, 0 to 1; 1 for an image of one layer."""
        wasted = sum(layer.hidden for layer in self.layers)
        return 1 - wasted / self.stored if self.stored else 1.0

    def duplicates(self) -> list[list[LayerFile]]:
        """Groups of visible files with the same content, those first that waste most bytes."""
        groups: dict[tuple[str, int], list[LayerFile]] = defaultdict(list)
        for one in self.visible:
            if one.piece.content and one.piece.stored:
                groups[one.piece.content, one.piece.entry.size].append(one)
        found = [sorted(group) for group in groups.values() if len(group) > 1]
        return sorted(found, key=lambda group: (-(len(group) - 1) * group[0].piece.stored, group[0].path))


class _Node:
    """A path of the stack as read so far."""

    __slots__ = ("below", "file")

    def __init__(self) -> None:
        self.below: dict[bytes, _Node] = {}
        self.file: int | None = None  # index into _Stack.files; None: a directory


def measure(layers: Iterable[Iterable[Piece]]) -> SizeReport:
    """Measure the layers of a stack, bottom first. Raises the errors of reading the pieces."""
    stack = _Stack()
    for pieces in layers:
        stack.add(pieces)
    return stack.report()


class _Stack:
    def __init__(self) -> None:
        self.root = _Node()
        self.layers: list[LayerSizes] = []
        self.files: list[LayerFile] = []  # all files of all layers
        self.hidden: dict[int, HiddenFile] = {}  # by index into `files`
        self.links: dict[int, int] = {}  # further names of a layer's files -> the file, as indexes into `files`

    def add(self, pieces: Iterable[Piece]) -> None:
        """Add one layer on top. Its marks hide files of lower layers only, wherever among the pieces they stand."""
        number = len(self.layers)
        layer = LayerSizes()
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

    def report(self) -> SizeReport:
        result = SizeReport(self.layers)
        moved = self._moved()
        kept = set(moved.values())
        for path, node in _walk(self.root):
            if node.file is not None:
                result.visible.append(self.files[node.file]._replace(path=path, piece=self._shown(node.file, moved)))
        result.hidden = [one for number, one in self.hidden.items() if number not in kept]
        for one in result.hidden:
            self.layers[one.file.layer].hidden += one.file.piece.stored
        return result

    def _moved(self) -> dict[int, int]:
        """Names that show of files whose first name is hidden: the data are theirs then, and show."""
        first: dict[int, int] = {}
        for link, file in self.links.items():
            if link not in self.hidden and file in self.hidden:
                first.setdefault(file, link)
        return {link: file for file, link in first.items()}

    def _shown(self, number: int, moved: dict[int, int]) -> Piece:
        """The piece of a file that shows, with the data of its hidden first name if they are its own now."""
        piece = self.files[number].piece
        if number not in moved:
            return piece
        data = self.files[moved[number]].piece
        return piece._replace(
            entry=piece.entry._replace(size=data.entry.size), stored=data.stored, content=data.content
        )  # fmt: skip

    def _bring(self, piece: Piece, number: int) -> None:
        path = piece.entry.path
        if not path:
            return
        node = self.root
        for name in path[:-1]:  # a file of the layers beneath at a parent directory's path is replaced
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
        self.files.append(LayerFile(path, number, piece))
        target = self._find(piece.entry.link) if piece.entry.kind == LINK else None
        if target is not None and target.file is not None and self.files[target.file].layer == number:
            self.links[node.file] = self.links.get(target.file, target.file)

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
                self.hidden[below.file] = HiddenFile(self.files[below.file], by, how)

    def _hide_below(self, node: _Node, by: int, how: str) -> None:
        for below in node.below.values():
            self._hide(below, by, how)
        node.below = {}

    def _hide_file(self, node: _Node, by: int, how: str) -> None:
        assert node.file is not None
        self.hidden[node.file] = HiddenFile(self.files[node.file], by, how)
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


class Effect(NamedTuple):
    """The effect of one layer on one path."""

    layer: int
    what: str  # BRINGS, HIDES, EMPTIES, COVERS or PASSES
    at: Path  # the path of the entry that has the effect: the path itself, or one above it
    piece: Piece | None  # that entry, if it brings or covers the path
    files: int = 0  # number of the layer's files below the path
    stored: int = 0  # their bytes


BRINGS: Final = "brings"  # has an entry of the path
HIDES: Final = "hides"  # has a whiteout of it, or of a directory above it
EMPTIES: Final = "empties"  # has an opaque mark on it, or on a directory above it
COVERS: Final = "covers"  # has a file where lower layers have a directory above it
PASSES: Final = "passes through"  # has files below the path, but no entry of it


def effects(layers: Sequence[Iterable[Piece]], path: Path) -> list[Effect]:
    """The effects of all layers of a stack, bottom first, on a path; a layer may have several, or none."""
    found = []
    for number, pieces in enumerate(layers):
        here: list[Effect] = []
        files = stored = 0
        for piece in pieces:
            at = piece.entry.path
            is_above = len(at) < len(path) and path[: len(at)] == at
            if piece.entry.kind == WHITEOUT:
                if at == path or is_above:
                    here.append(Effect(number, HIDES, at, None))
            elif piece.entry.kind == OPAQUE:
                if at == path or is_above:
                    here.append(Effect(number, EMPTIES, at, None))
            elif at == path:
                here = [effect for effect in here if effect.what != BRINGS]  # the later of two entries counts
                here.append(Effect(number, BRINGS, at, piece))
            elif is_above and piece.entry.kind != DIRECTORY:
                here.append(Effect(number, COVERS, at, piece))
            elif len(at) > len(path) and at[: len(path)] == path:
                files += piece.entry.kind != DIRECTORY
                stored += piece.stored
        if files and not any(effect.what == BRINGS for effect in here):
            here.append(Effect(number, PASSES, path, None))
        found += [effect._replace(files=files, stored=stored) if effect.at == path else effect for effect in here]
    return found


def visible_effects(found: list[Effect]) -> set[int]:
    """The indexes of the effects (bottom layer first) that provide what shows: the topmost BRINGS or PASSES, and for a
    directory those of lower layers too, down to the first layer that hides, empties, covers or replaces it."""
    shown: set[int] = set()
    for number in sorted({effect.layer for effect in found}, reverse=True):
        here = {at: effect for at, effect in enumerate(found) if effect.layer == number}
        brought = [at for at, effect in here.items() if effect.what in (BRINGS, PASSES)]
        covered = any(effect.what == COVERS for effect in here.values())
        is_directory = all((piece := here[at].piece) is None or piece.entry.kind == DIRECTORY for at in brought)
        if brought and not covered and (is_directory or not shown):
            shown.update(brought)
        stops = covered or any(effect.what in (HIDES, EMPTIES) for effect in here.values())
        if stops or (brought and not is_directory):
            return shown
    return shown
