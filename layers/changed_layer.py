"""Pack the changes of an upper on its lowers into a layer, and put it into the store.

Knows trees, packing and the store. Reads the upper, and in the layers only the paths that it changes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from layers import compare, pack, unpacked
from layers.compare import Change
from layers.compression import GZIP, ZSTD
from layers.digest import Digest
from layers.entry import OPAQUE, WHITEOUT
from layers.fingerprint import Fingerprint
from layers.manifest import OCI_LAYER, Descriptor
from layers.pack import Item, OnShrunk, Packed
from layers.progress import Progress
from layers.safe_open import Path
from layers.store import Store
from layers.tarwrite import mark_path
from layers.tree import LayerTrees, Node, View, content
from unionfs import markers

_TYPE_SUFFIXES: Final = {GZIP: "+gzip", ZSTD: "+zstd"}


@dataclass(slots=True)
class ChangedLayer:
    """A new layer. `changes` are its changes, `equal` the files that were left out because they do not differ."""

    packed: Packed
    descriptor: Descriptor
    paths: set[Path] = field(default_factory=set)  # paths of its entries; a mark's is its own name
    changes: list[Change] = field(default_factory=list)
    equal: list[Change] = field(default_factory=list)


def put_changes(
    store: Store,
    upper: str,
    lowers: Sequence[str],
    compression: str,
    progress: Progress,
    *,
    is_whole: bool = False,
    frozen: Sequence[str] = (),
    beneath: Sequence[str] = (),
    mountpoints: Collection[bytes] = (),
    epoch: pack.Epoch | None = None,
    on_shrunk: OnShrunk = None,
) -> ChangedLayer:
    """Pack what the branch `upper` changes on `lowers` (top first). Preconditions: within `store.adding`.

    The arguments are those of `make_image.commit`. Raises: LayerError, OSError.
    """
    made = ChangedLayer(Packed(Digest(""), Digest(""), 0, 0, 0), Descriptor("", Digest(""), 0))
    with LayerTrees() as branches:
        new = branches.view([upper] if is_whole else [upper, *frozen, *lowers])
        old = branches.view([*lowers, *beneath])
        changes = _without_mountpoints(
            list(compare.changes(old, new, fingerprint=_RecordedFingerprints(), equal=True)), mountpoints
        )
        items = pack.change_items(old, new, _collecting(_with_hard_links(changes, old, new), made))
        if not lowers:
            items = pack.merged_items(new)
        items = _noting(items, made.paths)
        made.packed, made.descriptor = put_layer(store, items, compression, epoch, progress, on_shrunk)
    return made


def described(packed: Packed, compression: str) -> Descriptor:
    """The descriptor of a layer that was packed."""
    return Descriptor(media_type(compression), packed.digest, packed.size)


def media_type(compression: str) -> str:
    """OCI's type of a layer with this compression."""
    return OCI_LAYER + _TYPE_SUFFIXES.get(compression, "")


def put_layer(
    store: Store,
    items: Iterable[Item],
    compression: str,
    epoch: pack.Epoch | None,
    progress: Progress,
    on_shrunk: OnShrunk = None,
) -> tuple[Packed, Descriptor]:
    """Pack entries into a blob of the store. Preconditions: within `store.adding`. Raises: LayerError, OSError."""
    aside = store.new_aside()
    progress.begin("layer", "packing", None)
    with RemovedOnFailure(aside) as path:
        with open(path, "wb") as sink:
            packed = pack.pack(
                items,
                sink,
                compression,
                epoch=epoch,
                on_read=lambda count: progress.advance("layer", count),
                on_shrunk=on_shrunk,
            )
        store.put_file(path, packed.digest)
    progress.end("layer", "packed")
    return packed, described(packed, compression)


class RemovedOnFailure:
    """Removes the file at `path` when the block fails."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> str:
        return self._path

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None and os.path.exists(self._path):
            os.unlink(self._path)


def _without_mountpoints(changes: list[Change], mountpoints: Collection[bytes]) -> list[Change]:
    """The changes without empty mountpoints and without the directories that are listed only because of them."""
    if not mountpoints:
        return changes
    kept: list[Change] = []
    busy: set[tuple[bytes, ...]] = set()  # directories above changes that are kept
    left: set[tuple[bytes, ...]] = set()  # directories above changes that are left out
    for change in reversed(changes):  # a directory precedes its content
        path, new = change.path, change.new
        is_bare = path not in busy and new is not None and new.size == 0 and new.kind in (stat.S_IFDIR, stat.S_IFREG)
        is_made = change.kind == compare.ADDED and b"/" + b"/".join(path) in mountpoints
        if is_bare and (is_made or (path in left and change.kind == compare.CHANGED and not change.what)):
            left.add(path[:-1])
            continue
        kept.append(change)
        if change.kind != compare.EQUAL:
            busy.update(path[:depth] for depth in range(len(path)))
    return kept[::-1]


def _noting(items: Iterable[Item], paths: set[Path]) -> Iterator[Item]:
    for item in items:
        entry = item.entry
        paths.add(mark_path(entry) if entry.kind in (OPAQUE, WHITEOUT) else entry.path)
        yield item


def _collecting(changes: Iterable[Change], made: ChangedLayer) -> Iterator[Change]:
    for change in changes:
        (made.equal if change.kind == compare.EQUAL else made.changes).append(change)
        yield change


def _with_hard_links(changes: list[Change], old: View, new: View) -> list[Change]:
    """Add the other hard links of changed files to the changes, sorted by path. The union shows the changed file at all
    of them, but the upper holds only those that were opened."""
    changed: dict[tuple[int, int], Node] = {}  # lower inode -> the changed file
    known = {change.path: change for change in changes}
    for change in changes:
        if change.old is not None and change.new is not None and change.old.nlink > 1 and change.what:
            marks = change.new.place.branch.xattrs(change.new.place.path)
            if change.new.kind == change.old.kind and markers.ORIGIN_XATTR in marks:
                shared = changed[change.old.inode] = change.new._replace(nlink=2)
                known[change.path] = change._replace(new=shared)
    if not changed:
        return changes
    for path, before in old.walk():
        after = new.find(path) if before.inode in changed and not before.is_dir else None
        if after is None or after.sources != before.sources:
            continue
        known[path] = Change(compare.CHANGED, path, ("content",), before, changed[before.inode])
        for depth in range(len(path)):
            above = path[:depth]
            if above not in known:
                known[above] = Change(compare.CHANGED, above, (), old.find(above), new.find(above))
    return [known[path] for path in sorted(known)]


class _RecordedFingerprints:
    """Gives fingerprints of files; those of unpacked layers come from the record, without reading the files."""

    def __init__(self) -> None:
        self._fingerprints: dict[str, dict[bytes, Fingerprint]] = {}  # by layer directory; filled on demand

    def __call__(self, node: Node) -> str:
        directory = node.data.branch.path
        if directory not in self._fingerprints:
            self._fingerprints[directory] = unpacked.fingerprints_of(directory)
        known = self._fingerprints[directory].get(b"/".join(node.data.path))
        if (
            known is not None
            and isinstance(known.content, str)
            and known.type == "f"
            and known.mtime_ns == node.mtime_ns
        ):
            return known.content
        return content(node)
