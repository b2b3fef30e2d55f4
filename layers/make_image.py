"""Make new images of directories and tars: commit, squash, import.

Knows trees, packing and the store. `commit` reads the writable branch, and of the layers only what it changes.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Final

from layers import compare, image, lookup, pack, unpacked
from layers import config as configs
from layers import digest as digests
from layers import manifest as manifests
from layers.attributes import Options
from layers.compare import Change
from layers.compression import GZIP, ZSTD, CountingReader, Readable, compressor, decompressed
from layers.config import History, ImageConfig, Settings
from layers.digest import Digest
from layers.errors import LayerError
from layers.fingerprint import Fingerprint
from layers.instructions import with_change
from layers.manifest import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Descriptor, Manifest, Platform
from layers.pack import Item, OnShrunk, Packed
from layers.progress import Progress, Silent
from layers.store import Store
from layers.tree import LayerTrees, Node, View, content
from unionfs import markers

_TYPE_SUFFIXES: Final = {GZIP: "+gzip", ZSTD: "+zstd"}


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """The metadata and compression of a new image."""

    name: str = ""  # in full; empty: the image has no name
    author: str = ""
    message: str = ""
    created_by: str = ""
    changes: Sequence[str] = ()  # Dockerfile instructions (see `instructions`)
    compression: str = GZIP
    platform: Platform | None = None  # of an image without a base; None: this machine's


@dataclass(slots=True)
class Committed:
    """A new image. `changes` are what its layer holds, `equal` what was left out because nothing differs."""

    digest: Digest  # of its manifest
    id: Digest  # of its configuration
    layer: Packed
    changes: list[Change] = field(default_factory=list)
    equal: list[Change] = field(default_factory=list)


def commit(
    store: Store,
    upper: str,
    base: str | None,
    wanted: ImageOptions,
    *,
    is_whole: bool = False,
    beneath: Sequence[str] = (),
    mountpoints: Collection[bytes] = (),
    options: Options | None = None,
    progress: Progress | None = None,
    on_shrunk: OnShrunk = None,
) -> Committed:
    """Make an image of `base` (a name, id or digest; None for none) and the changes in the writable branch `upper`.

    With `is_whole` the upper holds the whole tree and no marks. Files that equal those of the directories `beneath` the
    base are no change; nor are empty `mountpoints` (absolute paths).
    Whiteouts and opaque directories may be of any dialect, the content of a redirected directory is included, and a
    file that was copied up but equals the lower one is left out. Times after SOURCE_DATE_EPOCH are set back to it.
    `on_shrunk` as for `pack.pack`. Raises: NotFound for the base, LayerError, OSError.
    """
    report = progress or Silent()
    epoch = pack.source_date_epoch()
    with store.adding():
        lowers: list[str] = []
        layers: tuple[Descriptor, ...] = ()
        config = ImageConfig(wanted.platform or manifests.own_platform(), ())
        if base is not None:
            found = store.find(base)
            resolved = image.unpack_image(store, found.descriptor, options or Options(), report)
            _, item, config = lookup.read(store, found.descriptor)
            lowers, layers = resolved.lowers, item.layers
        committed = Committed(Digest(""), Digest(""), Packed(Digest(""), Digest(""), 0, 0, 0))
        with LayerTrees() as branches:
            new = branches.view([upper] if is_whole else [upper, *lowers])
            old = branches.view([*lowers, *beneath])
            changes = _without_mountpoints(
                list(compare.changes(old, new, fingerprint=_RecordedFingerprints(), equal=True)), mountpoints
            )
            items = pack.change_items(old, new, _collecting(_with_hard_links(changes, old, new), committed))
            if not lowers:
                items = pack.merged_items(new)
            committed.layer, layer = _put_layer(store, items, wanted.compression, epoch, report, on_shrunk)
        created = configs.timestamp(time.time() if epoch is None else epoch)
        entry = History(created, wanted.created_by, wanted.author, wanted.message)
        config = with_layer(config, committed.layer.diff_id, entry, wanted)
        committed.digest, committed.id = put_image(store, config, (*layers, layer), wanted.name)
    return committed


def squash(
    store: Store,
    text: str,
    wanted: ImageOptions,
    *,
    keep: int = 0,
    options: Options | None = None,
    on_shrunk: OnShrunk = None,
) -> Committed:
    """Make an image with all layers but the `keep` lowest merged into one; `on_shrunk` as for `pack.pack`. Raises:
    NotFound, LayerError."""
    epoch = pack.source_date_epoch()
    with store.adding():
        found = store.find(text)
        resolved = image.unpack_image(store, found.descriptor, options or Options(), Silent())
        _, item, config = lookup.read(store, found.descriptor)
        if not 0 <= keep < len(item.layers):
            raise LayerError("squashing", text, f"it has {len(item.layers)} layers, {keep} of them cannot be kept")
        with LayerTrees() as branches:
            new = branches.view(resolved.lowers)
            old = new.below(len(resolved.lowers) - keep)
            items = pack.change_items(old, new, compare.changes(old, new)) if keep else pack.merged_items(new)
            packed, layer = _put_layer(store, items, wanted.compression, epoch, Silent(), on_shrunk)
        created = configs.timestamp(time.time() if epoch is None else epoch)
        entry = History(created, wanted.created_by or "layers squash", wanted.author, wanted.message)
        config = config._replace(diff_ids=config.diff_ids[:keep], history=_history_up_to(config.history, keep))
        config = with_layer(config, packed.diff_id, entry, wanted)
        digest, image_id = put_image(store, config, (*item.layers[:keep], layer), wanted.name)
    return Committed(digest, image_id, packed)


def import_tar(
    store: Store,
    source: Readable,
    wanted: ImageOptions,
    *,
    options: Options | None = None,
    progress: Progress | None = None,
) -> Committed:
    """Make an image of one layer from the tar of a root filesystem, compressed or not. Raises: Refused, OSError."""
    report = progress or Silent()
    chosen = options or Options()
    epoch = pack.source_date_epoch()
    with store.adding():
        packed, layer = _recompress(store, source, wanted.compression, chosen, report)
        pending = unpacked.Pending(store, chosen)
        with store.open_blob(packed.digest) as blob:
            pending.run(blob, packed.diff_id)
        with LayerTrees() as branches:
            pending.place(packed.diff_id, [], branches)
        created = configs.timestamp(time.time() if epoch is None else epoch)
        entry = History(created, wanted.created_by or "unionfs import", wanted.author, wanted.message)
        config = with_layer(ImageConfig(wanted.platform or manifests.own_platform(), ()), packed.diff_id, entry, wanted)
        digest, image_id = put_image(store, config, (layer,), wanted.name)
    return Committed(digest, image_id, packed)


def with_layer(config: ImageConfig, diff_id: Digest, entry: History, wanted: ImageOptions) -> ImageConfig:
    """The configuration with one more layer and with the changes of `wanted`."""
    settings: Settings = config.settings
    for change in wanted.changes:
        settings = with_change(settings, change)
    return config._replace(
        diff_ids=(*config.diff_ids, diff_id),
        history=(*config.history, entry),
        settings=settings,
        created=entry.created,
        author=wanted.author or config.author,
    )


def put_image(store: Store, config: ImageConfig, layers: Iterable[Descriptor], name: str) -> tuple[Digest, Digest]:
    """Store configuration and manifest, and name them; the digest of the manifest, and the image's id, which is that of
    the configuration. Preconditions: within `store.adding`."""
    data = configs.to_json(config)
    described = Descriptor(OCI_CONFIG, store.put(data), len(data))
    # Layers of Docker's types become OCI's: a manifest is of one family.
    oci = tuple(Descriptor(_oci_type(layer), layer.digest, layer.size) for layer in layers)
    manifest = manifests.to_json(Manifest(OCI_MANIFEST, described, oci))
    digest = store.put(manifest)
    store.tag(Descriptor(OCI_MANIFEST, digest, len(manifest), platform=config.platform), name)
    return digest, described.digest


def _oci_type(layer: Descriptor) -> str:
    return OCI_LAYER + _TYPE_SUFFIXES.get(layer.compression, "")


def _put_layer(
    store: Store,
    items: Iterable[Item],
    compression: str,
    epoch: int | None,
    progress: Progress,
    on_shrunk: OnShrunk = None,
) -> tuple[Packed, Descriptor]:
    aside = store.new_aside()
    progress.begin("layer", "packing", None)
    with _RemovedOnFailure(aside) as path:
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
    return packed, Descriptor(OCI_LAYER + _TYPE_SUFFIXES.get(compression, ""), packed.digest, packed.size)


def _recompress(
    store: Store, source: Readable, compression: str, options: Options, progress: Progress
) -> tuple[Packed, Descriptor]:
    """Store the tar in `source` as a blob of the given compression."""
    aside = store.new_aside()
    progress.begin("layer", "importing", None)
    with _RemovedOnFailure(aside) as path:
        with open(path, "wb") as sink:
            packed = recompressed(source, sink, compression, options, lambda n: progress.advance("layer", n))
        store.put_file(path, packed.digest)
    progress.end("layer", "imported")
    return packed, Descriptor(OCI_LAYER + _TYPE_SUFFIXES.get(compression, ""), packed.digest, packed.size)


def recompressed(
    source: Readable, sink: IO[bytes], compression: str, options: Options, on_read: Callable[[int], None]
) -> Packed:
    """Decompress `source` and write it into `sink` with another compression. Raises: Refused."""
    counted = CountingReader(source, on_read)
    plain, outer = digests.hasher(_SHA256), digests.hasher(_SHA256)
    work = compressor(compression)
    tar_size = size = 0

    def put(data: bytes) -> None:
        nonlocal size
        outer.update(data)
        sink.write(data)
        size += len(data)

    for chunk in decompressed(counted):
        tar_size += len(chunk)
        options.limits.check_bytes(counted.count, tar_size)
        plain.update(chunk)
        put(work.compress(chunk))
    put(work.flush())
    return Packed(digests.finished(_SHA256, outer), digests.finished(_SHA256, plain), size, tar_size, 0)


_SHA256: Final = Digest("sha256:")


class _RemovedOnFailure:
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


def _collecting(changes: Iterable[Change], committed: Committed) -> Iterator[Change]:
    for change in changes:
        (committed.equal if change.kind == compare.EQUAL else committed.changes).append(change)
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


def _history_up_to(history: Sequence[History], layers: int) -> tuple[History, ...]:
    """The entries of a history up to its `layers`-th layer."""
    kept: list[History] = []
    for entry in history:
        if not entry.empty_layer:
            if not layers:
                break
            layers -= 1
        kept.append(entry)
    return tuple(kept)
