"""Extract a directory of a shown tree: files, directories and symlinks, as the user's own, without set-id bits.

Each tar is read once. All files are made in a new directory, by names of one component. No link can redirect them,
since no other user can write to the directory before it is finished.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from layers.attributes import Options
from layers.entry import FILE, LINK, SYMLINK
from layers.explore import data
from layers.explore.data import Readable
from layers.explore.tree_index import TreeIndex
from layers.tarstream import TarStream
from unionfs.trees.remove import remove_path

_PERMISSIONS: Final = 0o777
_OWN_DIRECTORY: Final = 0o700
_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Extracted(NamedTuple):
    """The number and sizes of extracted files."""

    files: int
    size: int  # bytes of data
    left_out: int  # devices, fifos and sockets


class _File(NamedTuple):
    path: str
    layer: int
    record: int  # of the data
    mode: int


def extract(tree: TreeIndex, layers: Sequence[Readable], node: int, level: int, path: str) -> Extracted:
    """Extract the visible content of a directory at a level to the new directory `path`. After a failure nothing is
    left.

    Raises: LayerError, as data.parts does; OSError, EEXIST if there is something at `path`.
    """
    os.mkdir(path, _OWN_DIRECTORY)
    try:
        files, directories, left_out = _make(tree, node, level, path)
        size = sum(_write(tree, layers, layer, files) for layer in {file.layer for file in files})
        for directory, mode, mtime_ns in reversed(directories):  # the deepest first: a mode may forbid to enter
            os.utime(directory, ns=(mtime_ns, mtime_ns))
            os.chmod(directory, mode)
    except BaseException:
        remove_path(path)
        raise
    return Extracted(len(files), size, left_out)


def _make(tree: TreeIndex, top: int, level: int, path: str) -> tuple[list[_File], list[tuple[str, int, int]], int]:
    """Make directories and symlinks. Returns the files to write, the directories with mode and mtime, and the number of
    objects left out."""
    found: list[tuple[str, int, int]] = []  # place, layer, record
    directories: list[tuple[str, int, int]] = []
    left_out = 0
    todo = [(top, path)]
    while todo:
        node, place = todo.pop()
        entry = tree.shown(node, level)
        one = tree.layer_entry(entry)
        if tree.is_directory(entry):
            if node != top:
                os.mkdir(place, _OWN_DIRECTORY)
            implied = tree.is_implied(entry)
            directories.append((place, 0o755 if implied else one.mode & _PERMISSIONS, 0 if implied else one.mtime_ns))
            todo += [
                (child, os.path.join(place, os.fsdecode(tree.name(child))))
                for child in tree.all_children(node)
                if tree.shown(child, level) >= 0
            ]
        elif one.kind == SYMLINK:
            os.symlink(one.target, place)
        elif one.kind in (FILE, LINK):
            found.append((place, tree.layer_of[entry], tree.record_of[entry]))
        else:
            left_out += 1
    return _files(tree, found), directories, left_out


def _files(tree: TreeIndex, found: Sequence[tuple[str, int, int]]) -> list[_File]:
    """Return what to write at each place for a record of a layer."""
    data_of: dict[tuple[int, int], int] = {}
    for layer in {layer for _, layer, _ in found}:
        index = tree.layers[layer]
        links = [record for _, of, record in found if of == layer and index.kind_of(record) == LINK]
        data_of |= {(layer, link): file for link, file in data.first_names(index, links).items()}
    files = []
    for place, layer, name in found:
        record = data_of.get((layer, name), name)
        index = tree.layers[layer]
        data.refuse_lacking(index, record)
        files.append(_File(place, layer, record, index.mode[record] & _PERMISSIONS))
    return files


def _write(tree: TreeIndex, layers: Sequence[Readable], layer: int, files: Iterable[_File]) -> int:
    """Write the files of one layer, in the order in which it has their data. Returns the number of bytes."""
    index = tree.layers[layer]
    wanted = sorted((file for file in files if file.layer == layer), key=lambda file: index.offset[file.record])
    written: dict[int, str] = {}  # record -> where its data are already
    size = 0
    source = layers[layer]
    if source.directory is not None:
        for file in wanted:
            size += _write_one(file, data.parts(source, index, file.record), index.mtime_ns[file.record], written)
        return size
    with source.opened() as tar, TarStream(tar, Options().limits) as stream:
        for file in wanted:
            size += _write_one(file, data.of_stream(stream, index, file.record), index.mtime_ns[file.record], written)
    return size


def _write_one(file: _File, parts: Iterable[bytes], mtime_ns: int, written: dict[int, str]) -> int:
    if file.record in written:
        os.link(written[file.record], file.path)
        return 0
    size = 0
    with open(os.open(file.path, _FLAGS, 0o600), "wb") as output:
        for part in parts:
            size += len(part)
            output.write(part)
        output.flush()
        os.fchmod(output.fileno(), file.mode)
        os.utime(output.fileno(), ns=(mtime_ns, mtime_ns))
    written[file.record] = file.path
    return size
