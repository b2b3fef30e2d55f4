"""The layer of a COPY, ADD or WORKDIR: made of its sources and its destination, without a container.

It is written as a tar and unpacked from that, so that the image and the directory of the store are equal.
Preconditions: in a process with all ids, within `store.adding`.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from layers import pack, unpacked
from layers.attributes import Options
from layers.changed_layer import RemovedOnFailure, described
from layers.compression import NONE
from layers.digest import Digest
from layers.entry import DIRECTORY, FILE, LINK, SYMLINK, Entry
from layers.make_image import recompressed
from layers.manifest import Descriptor
from layers.pack import Epoch, Item
from layers.safe_open import Path
from layers.store import Store
from layers.tree import LayerTrees, Node, xattrs
from unionfs import markers
from unionfs.build.copy_sources import CopiedObject, Source
from unionfs.build.trees import Layers
from unionfs.containers.errors import ContainerError
from unionfs.containers.images import owners_here

_NEW_DIRECTORY: Final = 0o755


class Owner(NamedTuple):
    """The owner that --chown gives; also to directories that are made on the way."""

    uid: int
    gid: int


class Destination(NamedTuple):
    """The destination of copies, and their attributes."""

    path: str  # absolute, as it is written; with a slash at its end it is a directory
    owner: Owner | None = None
    mode: int | None = None  # of --chmod
    must_be_directory: bool = False


class Made(NamedTuple):
    """A layer that is unpacked in the store, and its tar, which is still to be compressed into a blob."""

    tar: str  # host path
    diff_id: Digest
    tar_size: int
    entries: int


class LayerInputs(NamedTuple):
    """The inputs for making a layer."""

    store: Store
    directory: str  # for its tar
    lowers: tuple[str, ...]  # host paths of the layers beneath, the topmost first
    epoch: Epoch | None


def copy(kit: LayerInputs, sources: Sequence[Source], to: Destination) -> Made:
    """Raises: ContainerError where a source cannot go to its place, LayerError, OSError."""
    with Layers(kit.lowers) as tree:
        return _put(kit, _Copy(tree, to).items(sources))


def make_directory(kit: LayerInputs, path: str, owner: Owner | None) -> Made | None:
    """Make a directory, if it is missing (WORKDIR). Raises: ContainerError, LayerError, OSError."""
    with Layers(kit.lowers) as tree:
        where = tree.resolve_new(_parts(path))
        node = tree.find(where)
        if node is not None and node.is_dir:
            return None
        return _put(kit, _Copy(tree, Destination(path, owner)).directories(where))


def compress(store: Store, made: Made, compression: str, options: Options) -> Descriptor:
    """Make the blob of a layer, and remove its tar. Raises: OSError."""
    with RemovedOnFailure(store.new_aside()) as aside:
        with open(made.tar, "rb") as source, open(aside, "wb") as sink:
            packed = recompressed(source, sink, compression, options, lambda count: None)
        store.put_file(aside, packed.digest)
    os.unlink(made.tar)
    return described(packed, compression)


def own_options() -> Options:
    """How layers are unpacked by this process."""
    return Options(owners=owners_here())


def _put(kit: LayerInputs, items: Iterator[Item]) -> Made:
    tar = os.path.join(kit.directory, f"tar-{os.urandom(8).hex()}")
    with open(tar, "xb") as sink:
        packed = pack.pack(items, sink, NONE, epoch=kit.epoch)
    pending = unpacked.Pending(kit.store, own_options())
    with open(tar, "rb") as source:
        pending.run(source, packed.diff_id)
    with LayerTrees() as branches:
        pending.place(packed.diff_id, [], branches)
    return Made(tar, packed.diff_id, packed.tar_size, packed.entries)


def _parts(path: str) -> Path:
    return tuple(part for part in os.fsencode(path).split(b"/") if part)


class _Copy:
    """Makes the entries of one layer, each directory before its content."""

    def __init__(self, tree: Layers, to: Destination) -> None:
        self._tree: Final = tree
        self._to: Final = to
        self._now_ns: Final = time.time_ns()
        self._made: Final[dict[Path, bool]] = {}  # directories of the layer -> whether they are new; added to only
        self._links: Final[dict[tuple[int, int], Path]] = {}  # files with several names: their first copies
        self._linked: Final[dict[Path, tuple[int, int]]] = {}  # the same by path

    def items(self, sources: Sequence[Source]) -> Iterator[Item]:
        is_directory = self._to.path.endswith(("/", "/.", "/.."))
        where = self._tree.resolve_new(_parts(self._to.path))
        node = self._tree.find(where)
        if node is not None and not (node.is_dir or is_directory or any(source.is_dir for source in sources)):
            where = self._unfollowed()
        if node is not None and not node.is_dir and (is_directory or self._to.must_be_directory):
            raise self._conflict(where, "it is not a directory")
        into = is_directory or (node is not None and node.is_dir)
        if self._to.must_be_directory and not into:
            why = "there are several sources, so the destination must be a directory, and end with a slash"
            raise ContainerError("", self._to.path, why)
        for source in sources:
            if source.is_dir:
                yield from self._content(source, where, keeps_mode=is_directory)
            else:
                at = (*where, source.name) if into else where
                if not at:
                    raise self._conflict(at, "it is a directory")
                yield from self.directories(at[:-1])
                for copied in source.objects():
                    yield from self._object(copied, at)

    def _unfollowed(self) -> Path:
        """The destination with the links above it resolved. If the destination is a link to anything but a directory,
        the file replaces it, as with podman; a dangling link is followed, as BuildKit does."""
        parts = _parts(self._to.path)
        return (*self._tree.resolve_new(parts[:-1]), parts[-1])

    def _content(self, source: Source, where: Path, *, keeps_mode: bool) -> Iterator[Item]:
        """The content of a directory. One that is new has the mode of the source, unless its path ends with a slash."""
        for copied in source.objects():
            at = (*where, *copied.below)
            if copied.below or (not keeps_mode and not self._exists(where)):
                yield from self.directories(at[:-1])
                yield from self._object(copied, at)
            else:
                yield from self.directories(where)

    def directories(self, path: Path) -> Iterator[Item]:
        """The directory at `path` and those above it, existing or new."""
        for depth in range(len(path) + 1):
            at = path[:depth]
            if at in self._made:
                continue
            node = None if at and self._made[at[:-1]] else self._tree.find(at)
            if node is not None and not node.is_dir:
                raise self._conflict(at, "it is not a directory")
            self._made[at] = node is None
            yield Item(_of_node(at, node) if node is not None else self._new_directory(at))

    def _new_directory(self, at: Path) -> Entry:
        owner = self._to.owner or Owner(0, 0)
        return Entry(at, DIRECTORY, _NEW_DIRECTORY, owner.uid, owner.gid, self._now_ns)

    def _exists(self, at: Path) -> bool:
        return at in self._made or self._tree.find(at) is not None

    def _object(self, copied: CopiedObject, at: Path) -> Iterator[Item]:
        found = copied.found
        known = None if self._made.get(at[:-1]) else self._tree.find(at)
        if markers.is_reserved(at[-1] if at else b""):
            why = "a layer cannot hold this name: it would hide another one"
            raise ContainerError("", f"/{os.fsdecode(b'/'.join(at))}", why)
        if known is not None and known.is_dir != found.is_dir and not self._is_replaced(known, at):
            raise self._conflict(at, "it is a directory" if known.is_dir else "it is not a directory")
        if found.is_dir:
            if at in self._made and not at:
                return
            self._made[at] = known is None or not known.is_dir
        first = self._links.get(found.inode) if copied.tree is not None and not found.is_dir else None
        entry = self._entry(copied, at)
        if (replaced := self._linked.pop(at, None)) is not None:  # a later source of this COPY has the same name
            del self._links[replaced]
        if first is not None and first != at:
            yield Item(entry._replace(kind=LINK, link=first, target=b"", size=0, xattrs=()))
            return
        if copied.tree is not None and found.nlink > 1 and not found.is_dir:
            self._links[found.inode], self._linked[at] = at, found.inode
        yield Item(entry, _data(copied) if found.kind == FILE and found.size else None)

    def _is_replaced(self, known: Node, at: Path) -> bool:
        """Whether a directory replaces the link at `at`: if the link leads to no directory, as with podman."""
        if known.kind != SYMLINK:
            return False
        try:
            node = self._tree.find(self._tree.resolve_new(at))
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            return True
        return node is None or not node.is_dir

    def _entry(self, copied: CopiedObject, at: Path) -> Entry:
        found, owner = copied.found, self._to.owner
        is_link = found.kind == SYMLINK
        return Entry(
            at,
            DIRECTORY if found.is_dir else found.kind,
            0o777 if is_link else found.mode if self._to.mode is None else self._to.mode,
            found.uid if owner is None else owner.uid,
            found.gid if owner is None else owner.gid,
            found.mtime_ns if copied.tree is not None else self._now_ns,
            found.size if found.kind == FILE else 0,
            copied.tree.target(found) if is_link and copied.tree is not None else b"",
            (),
            found.device if found.kind in (stat.S_IFCHR, stat.S_IFBLK) else (0, 0),
            tuple(sorted(copied.tree.xattrs(found).items())) if copied.tree is not None else (),
        )

    def _conflict(self, at: Path, why: str) -> ContainerError:
        return ContainerError(
            "", f"/{os.fsdecode(b'/'.join(at))}", f"{why} in the image, so nothing can be copied there"
        )


def _of_node(at: Path, node: Node) -> Entry:
    return Entry(
        at, DIRECTORY, node.mode, node.uid, node.gid, node.mtime_ns, xattrs=tuple(sorted(xattrs(node).items()))
    )


def _data(copied: CopiedObject) -> int:
    if copied.tree is not None:
        return copied.tree.open(copied.found)
    fd = os.memfd_create("heredoc", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.write(copied.data)
    return fd
