"""Open the indexes of layers and of merged trees: from the store, or made if they are missing or damaged.

    ROOT/indexes/HEX.layer        of the layer with this diff id (see `layer_index`)
    ROOT/indexes/HEX.tree         of the stack with this chain id (see `tree_index`)

Both depend on the content alone, so all images with a layer share its index; gc removes them with the unpacked layers
of the same keys. Layers without a known diff id (directories, tars of no image), and those of a store that cannot be
written to, are indexed in unnamed files, each time.
"""

from __future__ import annotations

import errno
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from multiprocessing import get_context
from typing import IO, Final, Protocol

from layers import digest as digests
from layers.digest import Digest
from layers.errors import Refused
from layers.explore.columns import Columns, Damaged
from layers.explore.layer_index import LayerIndex, write_layer
from layers.explore.tree_build import write_tree
from layers.explore.tree_index import TreeIndex
from layers.pieces import Piece
from layers.store import Store
from unionfs import store_files

_MANY_BYTES: Final = 4 << 20  # of packed layers: more are indexed by several processes at once
_READ_ONLY: Final = (errno.EACCES, errno.EPERM, errno.EROFS)
LAYER: Final = ".layer"
TREE: Final = ".tree"


class Source(Protocol):
    """A layer whose entries can be read."""

    diff_id: str  # sha256:HEX of its tar; empty: not known before it is read
    packed: int  # bytes of its tar as stored

    def pieces(self) -> Iterator[Piece]:
        """Yield the entries; afterwards `diff_id` is their layer's digest. Raises: Refused, NotFound, OSError."""


Progress = Callable[[int, int], None]
"""Called with the number of layers read and the number of all layers."""


def open_tree(
    sources: Sequence[Source], store: Store | None, keep: ExitStack, progress: Progress = lambda done, of: None
) -> TreeIndex:
    """Open the tree of a stack of layers, bottom first, until `keep` closes. Missing indexes are made.

    Raises: Refused, also for a layer that is not what its diff id says; NotFound; OSError.
    """
    try:
        return _Opening(sources, store, keep, progress).tree()
    except OSError as error:
        if store is None or error.errno not in _READ_ONLY:
            raise
    return _Opening(sources, None, keep, progress).tree()


class _Opening:
    def __init__(self, sources: Sequence[Source], store: Store | None, keep: ExitStack, progress: Progress) -> None:
        known = all(source.diff_id for source in sources)
        self._sources = sources
        self._store = store if known else None
        self._keep = keep
        self._progress = progress
        self._chain: Digest | None = None
        for source in sources if self._store is not None else ():
            self._chain = digests.chain(self._chain, Digest(source.diff_id))

    def tree(self) -> TreeIndex:
        store = self._store
        if store is None or self._chain is None:
            return self._made_unnamed()
        with store.using():  # temporary files are made in aside/, which gc sweeps
            os.makedirs(store.indexes, 0o700, exist_ok=True)
            paths = [store.index_path(Digest(source.diff_id), LAYER) for source in self._sources]
            return self._layers_and_tree(store, paths, store.index_path(self._chain, TREE))

    def _layers_and_tree(self, store: Store, paths: list[str], tree_path: str) -> TreeIndex:
        layers = [_opened_layer(path) for path in paths]
        missing = {path: number for number, path in enumerate(paths) if layers[number] is None}
        if missing:
            jobs = [partial(_write_layer_file, self._sources[number], path, store.new_aside())
                    for path, number in missing.items()]  # fmt: skip
            self._do(jobs, lambda done: self._progress(done, len(jobs)))
            layers = [known or _opened_layer(path) for known, path in zip(layers, paths, strict=True)]
        found = [layer for layer in layers if layer is not None]
        if len(found) != len(paths):
            raise OSError(errno.EIO, "an index is damaged as soon as it is written", store.indexes)
        for layer in found:
            self._keep.callback(layer.close)
        tree = _opened_tree(tree_path, found)
        if tree is None:
            self._do([partial(_write_tree_file, found, store.new_aside(), tree_path)])
            tree = _opened_tree(tree_path, found)
        if tree is None:
            raise OSError(errno.EIO, "an index is damaged as soon as it is written", tree_path)
        self._keep.callback(tree.close)
        return tree

    def _do(self, jobs: Sequence[Job], done: Callable[[int], None] = lambda count: None) -> None:
        if sum(source.packed for source in self._sources) > _MANY_BYTES:
            _in_children(jobs, done)
            return
        for count, job in enumerate(jobs):
            job()
            done(count + 1)

    def _made_unnamed(self) -> TreeIndex:
        layers = []
        for done, source in enumerate(self._sources):
            self._progress(done, len(self._sources))
            with _unnamed() as file:
                write_layer(_verified(source), file)
                layers.append(LayerIndex(file.fileno()))
            self._keep.callback(layers[-1].close)
        with _unnamed() as file:
            write_tree(layers, file, _about(layers))
            tree = TreeIndex(Columns(file.fileno()), layers)
        self._keep.callback(tree.close)
        return tree


def _unnamed() -> IO[bytes]:
    return tempfile.TemporaryFile(prefix="layers-")


def _verified(source: Source) -> Iterator[Piece]:
    """Yield the pieces of a layer. Raises: Refused at the end if the digest is not the expected one."""
    wanted = source.diff_id
    yield from source.pieces()
    if wanted and source.diff_id != wanted:
        raise Refused("reading a layer", "", f"the tar is {source.diff_id}, the image says {wanted}")


def _opened_layer(path: str) -> LayerIndex | None:
    """Open the index at `path`; None if it is missing or damaged."""
    with suppress(FileNotFoundError, Damaged):
        fd = store_files.open_file(path, os.O_RDONLY)
        try:
            return LayerIndex(fd)
        finally:
            os.close(fd)
    return None


def _opened_tree(path: str, layers: Sequence[LayerIndex]) -> TreeIndex | None:
    with suppress(FileNotFoundError, Damaged):
        fd = store_files.open_file(path, os.O_RDONLY)
        try:
            found = TreeIndex(Columns(fd), layers)
        finally:
            os.close(fd)
        if found.about["layers"] == _about(layers)["layers"]:
            return found
        found.close()
    return None


def _about(layers: Sequence[LayerIndex]) -> dict[str, list[int]]:
    return {"layers": [len(layer) for layer in layers]}


def _write_layer_file(source: Source, path: str, aside: str) -> None:
    _write_file(path, aside, lambda file: write_layer(_verified(source), file))


def _write_tree_file(layers: Sequence[LayerIndex], aside: str, path: str) -> None:
    _write_file(path, aside, lambda file: write_tree(layers, file, _about(layers)))


def _write_file(path: str, aside: str, write: Callable[[IO[bytes]], object]) -> None:
    """Write a temporary file and rename it into place. Nothing is synced: a damaged index is made again."""
    try:
        with open(store_files.open_file(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL), "wb+") as file:
            write(file)
        os.rename(aside, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(aside)
        raise


# -- in other processes, which inherit what they work on: only the number of a job is sent to them --

Job = Callable[[], None]

_inherited: Sequence[Job] = ()  # set once, in a child


def _in_children(jobs: Sequence[Job], done: Callable[[int], None] = lambda count: None) -> None:
    """Do `jobs` in processes of their own, one for each processor; their memory ends with them. Raises their
    exceptions."""
    most = min(len(jobs), len(os.sched_getaffinity(0)))
    with ProcessPoolExecutor(most, get_context("fork"), _begin, (jobs,)) as pool:
        try:
            for count, _ in enumerate(pool.map(_do, range(len(jobs)))):
                done(count + 1)
        except BrokenExecutor:
            raise OSError(errno.ECANCELED, "a process that reads layers was killed") from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin(jobs: Sequence[Job]) -> None:
    global _inherited  # noqa: PLW0603 - of a child process, whose only purpose this is
    _inherited = jobs
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the children, too, without a message


def _do(number: int) -> None:
    _inherited[number]()
