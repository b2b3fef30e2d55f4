"""Trees of layers for the tests of the explorer, made of members of tars or of directories."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from layers.explore.indexes import open_tree
from layers.explore.tree_index import TreeIndex
from layers.pieces import Piece, TarPieces, of_directory
from layers.tree import LayerTrees
from tests.layers import trees

Member = tuple[str, dict[str, Any], bytes]


@dataclass
class Layer:
    """A layer of a test: a tar in memory, or a directory."""

    tar: bytes = b""
    path: str = ""
    name: str = "a layer"
    created_by: str = ""
    created: str = ""
    diff_id: str = ""
    digest: str = ""
    packed: int = 0
    read: list[int] = field(default_factory=list)  # one number each time it is read

    def pieces(self) -> Iterator[Piece]:
        self.read.append(1)
        if self.path:
            with LayerTrees() as branches:
                yield from of_directory(branches.open(self.path))
            return
        found = TarPieces(io.BytesIO(self.tar))
        yield from found
        self.diff_id = found.diff_id

    @property
    def directory(self) -> str | None:
        return self.path or None

    def opened(self) -> IO[bytes]:
        return io.BytesIO(self.tar)


def of_tars(*layers: Sequence[Member]) -> list[Layer]:
    """Layers, bottom first."""
    return [Layer(trees.tar_of(list(members))) for members in layers]


def of_directories(*directories: Path) -> list[Layer]:
    """Layers, bottom first."""
    return [Layer(path=str(directory)) for directory in directories]


@contextmanager
def tree_of(layers: Sequence[Layer]) -> Iterator[TreeIndex]:
    with ExitStack() as keep:
        yield open_tree(layers, None, keep)


def shown(tree: TreeIndex, level: int) -> dict[bytes, int]:
    """All paths that a level shows but directories, with the layer that brings each."""
    found: dict[bytes, int] = {}
    todo = [0]
    while todo:
        node = todo.pop()
        entry = tree.shown(node, level)
        if entry >= 0 and tree.is_directory(entry):
            todo += tree.children(node, -1, level)
        elif entry >= 0:
            found[tree.path(node)] = tree.layer_of[entry]
    return found
