"""Write directories as a layer's tar: choose and order its entries.

Knows trees, differences and `tarwrite`. The entries of a layer come from one of:

    layer_items      a layer directory as it is, with whiteouts of any dialect converted to OCI's
    merged_items     the merged content of a stack of directories, without whiteouts
    change_items     the differences between two stacks (see `compare`): for commit, and squash of some layers

Equal trees give equal bytes: names are sorted, times later than SOURCE_DATE_EPOCH are set back to it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Final, NamedTuple

from layers import compare
from layers.digest import Digest
from layers.entry import DIRECTORY, FILE, LINK, OPAQUE, SYMLINK, WHITEOUT, Entry
from layers.errors import LayerError
from layers.safe_open import Path
from layers.tarwrite import TarWriter
from layers.tree import LayerPath, LayerTree, Node, View, leaving_out_gone, target, xattrs
from unionfs import markers

OnShrunk = Callable[[str], None] | None
"""Gets the path of a file that became shorter while it was read."""

EPOCH_VARIABLE: Final = "SOURCE_DATE_EPOCH"
_BLOCK: Final = 512  # unit of st_blocks (stat(2))


class Item(NamedTuple):
    """An entry, and for a file with data an open descriptor, so that the data stay available. `pack` closes it."""

    entry: Entry
    data_fd: int | None = None


class Packed(NamedTuple):
    """The digests and sizes of a layer that was written."""

    digest: Digest  # of the compressed tar
    diff_id: Digest  # of the plain tar
    size: int  # bytes, compressed
    tar_size: int  # bytes, plain
    entries: int


class Epoch(NamedTuple):
    """A time that replaces later times, or all times."""

    seconds: int  # since 1970
    of_all: bool = False  # earlier times become it, too

    def of(self, time_ns: int) -> int:
        """The time that a file gets, in nanoseconds."""
        own = self.seconds * 10**9
        return own if self.of_all else min(time_ns, own)


def source_date_epoch(text: str | None = None) -> Epoch | None:
    """The value of $SOURCE_DATE_EPOCH, in seconds (reproducible-builds.org); None: that of the environment.

    Raises: LayerError when it is not a number.
    """
    text = os.environ.get(EPOCH_VARIABLE, "") if text is None else text
    if text and not (text.isdecimal() and text.isascii()):
        raise LayerError("packing", EPOCH_VARIABLE, f"{text[:40]!r} is not a number of seconds")
    return Epoch(int(text)) if text else None


def pack(
    items: Iterable[Item],
    sink: IO[bytes],
    compression: str,
    *,
    epoch: Epoch | None = None,
    on_read: Callable[[int], None] | None = None,
    on_shrunk: OnShrunk = None,
) -> Packed:
    """Write a layer into `sink`, times as `epoch` has them. `on_read` gets numbers of bytes read,
    `on_shrunk` the paths of files that become shorter while they are read, which end with zeros then.

    Raises: OSError, LayerError for an entry that no tar can hold, and without `on_shrunk` for a file that shrinks.
    """
    writer = TarWriter(sink, compression, on_read, on_shrunk)
    count = 0
    for item in items:
        entry = item.entry
        if epoch is not None and entry.kind not in (WHITEOUT, OPAQUE):
            entry = entry._replace(mtime_ns=epoch.of(entry.mtime_ns))
        if item.data_fd is None:
            writer.add(entry)
        else:
            try:
                writer.add(_with_holes(entry, item.data_fd), item.data_fd)
            finally:
                os.close(item.data_fd)
        count += 1
    digest, diff_id = writer.close()
    return Packed(digest, diff_id, writer.size, writer.tar_size, count)


def layer_items(branch: LayerTree) -> Iterator[Item]:
    """The entries of a layer directory. Raises: LayerError for marks that OCI has no form of: redirects, metacopy."""
    view = View([branch])
    links: dict[tuple[int, int], Path] = {}
    for path, node in view.walk():
        if node.is_dir:
            yield from _directory_with_marks(branch, path, node)
        else:
            if node.data == node.place and _is_metacopy(node):
                raise _incomplete(path, "its data, or a part of them, are in a layer beneath (metacopy)")
            yield from _items(path, node, links)


def merged_items(view: View) -> Iterator[Item]:
    """The entries of everything that a view shows."""
    links: dict[tuple[int, int], Path] = {}
    for path, node in view.walk():
        yield from _items(path, node, links)


def change_items(old: View, new: View, changes: Iterable[compare.Change]) -> Iterator[Item]:
    """The entries that make `new` out of `old`; `changes` are their differences.

    Unchanged directories above a change are included with their owner and mode, which unpacking would else not know.
    """
    links: dict[tuple[int, int], Path] = {}
    for change in changes:
        if change.kind == compare.EQUAL:
            continue
        items = list(_items(change.path, change.new, links)) if change.new is not None else []
        if not items and change.old is not None:  # removed, perhaps since it was compared
            items = [Item(Entry(change.path, WHITEOUT))]
        yield from items


def _directory_with_marks(branch: LayerTree, path: Path, node: Node) -> Iterator[Item]:
    scan = branch.scan(path)
    if scan.redirect is not None:
        raise _incomplete(path, f"its content is in a layer beneath, at {os.fsdecode(scan.redirect)!r} (redirect)")
    yield Item(_entry(path, node))
    if scan.opaque:
        yield Item(Entry(path, OPAQUE))
    for name in sorted(scan.whiteouts.keys() - scan.entries.keys()):
        yield Item(Entry((*path, name), WHITEOUT))
    for name in sorted(scan.whiteouts.keys() & scan.entries.keys()):
        if stat.S_ISDIR(scan.entries[name].st_mode) and not branch.scan((*path, name)).opaque:
            yield Item(Entry((*path, name), OPAQUE))


def _items(path: Path, node: Node, links: dict[tuple[int, int], Path]) -> Iterator[Item]:
    """The entry of a node; the second and later names of a file become links to the first. Yields nothing for a socket,
    which is useless without the process that made it, and which no tar can hold."""
    if node.kind == stat.S_IFSOCK:
        return
    if not node.is_dir and node.inode in links:
        yield Item(Entry(path, LINK, node.mode, node.uid, node.gid, node.mtime_ns, link=links[node.inode]))
        return
    item = None
    with leaving_out_gone():
        item = Item(_entry(path, node), _open(node.data) if node.kind == stat.S_IFREG and node.size else None)
    if item is not None:
        if not node.is_dir and node.nlink > 1:
            links[node.inode] = path
        yield item


def _entry(path: Path, node: Node) -> Entry:
    return Entry(
        path,
        DIRECTORY if node.is_dir else node.kind,
        node.mode if node.kind != SYMLINK else 0o777,
        node.uid,
        node.gid,
        node.mtime_ns,
        node.size if node.kind == FILE else 0,
        target(node) if node.kind == SYMLINK else b"",
        (),
        node.device,
        tuple(sorted(xattrs(node).items())),
    )


def _is_metacopy(node: Node) -> bool:
    if node.kind != stat.S_IFREG or not node.size:
        return False
    found = node.place.branch.xattrs(node.place.path)
    return any(mark in found for mark in markers.METACOPY_XATTRS)


def _incomplete(path: Path, why: str) -> LayerError:
    hint = "pack it together with the layers beneath: layers squash TOP ... BOTTOM"
    return LayerError("packing", os.fsdecode(b"/".join(path)), why, hint=hint)


def _open(place: LayerPath) -> int:
    path_fd = place.branch.open_path(place.path)
    try:
        return os.open(f"/proc/self/fd/{path_fd}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(path_fd)


def _with_holes(entry: Entry, fd: int) -> Entry:
    """The entry with the current size of the file, and with the extents of its data if it has holes."""
    st = os.fstat(fd)
    entry = entry._replace(size=st.st_size)
    if st.st_blocks * _BLOCK >= st.st_size:
        return entry
    extents = []
    at = 0
    try:
        while at < st.st_size:
            begin = os.lseek(fd, at, os.SEEK_DATA)
            at = min(os.lseek(fd, begin, os.SEEK_HOLE), st.st_size)
            extents.append((begin, at - begin))
    except OSError as error:
        if error.errno == errno.EINVAL:
            return entry  # the filesystem does not support SEEK_DATA
        if error.errno != errno.ENXIO:
            raise
    if extents == [(0, st.st_size)]:
        return entry
    return entry._replace(extents=tuple(extents))
