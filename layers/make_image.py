"""New images out of directories and tars: commit, squash, import.

Knows trees, packing and the store. `commit` looks at the writable branch alone: what it does not mention is not read.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import IO, Final

from layers import compare, image, pack, unpacked
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
from layers.pack import Item, Packed
from layers.progress import Progress, Silent
from layers.store import Store
from layers.tree import LayerTrees, Node, View, content
from unionfs import markers

_ARTIFACTS: Final = {GZIP: "+gzip", ZSTD: "+zstd"}


@dataclass(frozen=True, slots=True)
class Wish:
    """What a new image is to be, beside its files."""

    name: str = ""  # in full; empty: the image has no name
    author: str = ""
    message: str = ""
    created_by: str = ""
    changes: Sequence[str] = ()  # instructions of a Dockerfile
    compression: str = GZIP
    platform: Platform | None = None  # of an image on nothing; None: this machine's


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
    wish: Wish,
    *,
    is_whole: bool = False,
    beneath: Sequence[str] = (),
    mountpoints: Collection[bytes] = (),
    options: Options | None = None,
    progress: Progress | None = None,
) -> Committed:
    """A new image: `base` (a name, id or digest; None for nothing) with what the writable branch `upper` changed.
    With `is_whole` it holds all that there is, and no marks; what is there because of the directories `beneath` the
    base is no change; nor are `mountpoints`, absolute paths, with nothing in them.

    Whiteouts and opaque directories may be of any dialect, a redirected directory comes out whole, and a file that was
    copied up but equals the one beneath is left out. Times after SOURCE_DATE_EPOCH are set back to it.
    Raises: NotFound for the base, LayerError, OSError.
    """
    told = progress or Silent()
    epoch = pack.source_date_epoch()
    with store.adding():
        lowers: list[str] = []
        layers: tuple[Descriptor, ...] = ()
        config = ImageConfig(wish.platform or manifests.own_platform(), ())
        if base is not None:
            found = store.find(base)
            ready = image.make_ready(store, found.descriptor, options or Options(), told)
            _, item, config = image.read(store, found.descriptor)
            lowers, layers = ready.lowers, item.layers
        made = Committed(Digest(""), Digest(""), Packed(Digest(""), Digest(""), 0, 0, 0))
        with LayerTrees() as branches:
            new = branches.view([upper] if is_whole else [upper, *lowers])
            old = branches.view([*lowers, *beneath])
            changes = _without(list(compare.changes(old, new, fingerprint=_Known(), equal=True)), mountpoints)
            items = pack.change_items(old, new, _noted(_with_other_names(changes, old, new), made))
            if not lowers:
                items = pack.merged_items(new)
            made.layer, layer = _put_layer(store, items, wish.compression, epoch, told)
        created = configs.timestamp(time.time() if epoch is None else epoch)
        entry = History(created, wish.created_by, wish.author, wish.message)
        config = with_layer(config, made.layer.diff_id, entry, wish)
        made.digest, made.id = put_image(store, config, (*layers, layer), wish.name)
    return made


def squash(store: Store, text: str, wish: Wish, *, keep: int = 0, options: Options | None = None) -> Committed:
    """The image with all layers but the `keep` lowest made one. Raises: NotFound, LayerError."""
    epoch = pack.source_date_epoch()
    with store.adding():
        found = store.find(text)
        ready = image.make_ready(store, found.descriptor, options or Options(), Silent())
        _, item, config = image.read(store, found.descriptor)
        if not 0 <= keep < len(item.layers):
            raise LayerError("squashing", text, f"it has {len(item.layers)} layers, {keep} of them cannot be kept")
        with LayerTrees() as branches:
            new = branches.view(ready.lowers)
            old = new.below(len(ready.lowers) - keep)
            items = pack.change_items(old, new, compare.changes(old, new)) if keep else pack.merged_items(new)
            packed, layer = _put_layer(store, items, wish.compression, epoch, Silent())
        created = configs.timestamp(time.time() if epoch is None else epoch)
        entry = History(created, wish.created_by or "layers squash", wish.author, wish.message)
        config = replace(config, diff_ids=config.diff_ids[:keep], history=_lowest(config.history, keep))
        config = with_layer(config, packed.diff_id, entry, wish)
        digest, image_id = put_image(store, config, (*item.layers[:keep], layer), wish.name)
    return Committed(digest, image_id, packed)


def import_tar(
    store: Store, source: Readable, wish: Wish, *, options: Options | None = None, progress: Progress | None = None
) -> Committed:
    """An image of one layer out of a root filesystem's tar, compressed or not. Raises: Refused, OSError."""
    told = progress or Silent()
    chosen = options or Options()
    epoch = pack.source_date_epoch()
    with store.adding():
        packed, layer = _recompress(store, source, wish.compression, chosen, told)
        pending = unpacked.Pending(store, chosen)
        with store.open_blob(packed.digest) as blob:
            pending.run(blob, packed.diff_id)
        with LayerTrees() as branches:
            pending.place(packed.diff_id, [], branches)
        created = configs.timestamp(time.time() if epoch is None else epoch)
        entry = History(created, wish.created_by or "unionfs import", wish.author, wish.message)
        config = with_layer(ImageConfig(wish.platform or manifests.own_platform(), ()), packed.diff_id, entry, wish)
        digest, image_id = put_image(store, config, (layer,), wish.name)
    return Committed(digest, image_id, packed)


def with_layer(config: ImageConfig, diff_id: Digest, entry: History, wish: Wish) -> ImageConfig:
    """The configuration with one more layer, changed as wished."""
    settings: Settings = config.settings
    for change in wish.changes:
        settings = with_change(settings, change)
    return replace(
        config,
        diff_ids=(*config.diff_ids, diff_id),
        history=(*config.history, entry),
        settings=settings,
        created=entry.created,
        author=wish.author or config.author,
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
    return OCI_LAYER + _ARTIFACTS.get(layer.compression, "")


def _put_layer(
    store: Store, items: Iterable[Item], compression: str, epoch: int | None, progress: Progress
) -> tuple[Packed, Descriptor]:
    aside = store.new_aside()
    progress.begin("layer", "packing", None)
    with _RemovedOnFailure(aside) as path:
        with open(path, "wb") as sink:
            packed = pack.pack(
                items, sink, compression, epoch=epoch, on_read=lambda count: progress.advance("layer", count)
            )
        store.put_file(path, packed.digest)
    progress.end("layer", "packed")
    return packed, Descriptor(OCI_LAYER + _ARTIFACTS.get(compression, ""), packed.digest, packed.size)


def _recompress(
    store: Store, source: Readable, compression: str, options: Options, progress: Progress
) -> tuple[Packed, Descriptor]:
    """What `source` holds as a blob of the given compression."""
    aside = store.new_aside()
    progress.begin("layer", "importing", None)
    with _RemovedOnFailure(aside) as path:
        with open(path, "wb") as sink:
            packed = recompressed(source, sink, compression, options, lambda n: progress.advance("layer", n))
        store.put_file(path, packed.digest)
    progress.end("layer", "imported")
    return packed, Descriptor(OCI_LAYER + _ARTIFACTS.get(compression, ""), packed.digest, packed.size)


def recompressed(
    source: Readable, sink: IO[bytes], compression: str, options: Options, on_read: Callable[[int], None]
) -> Packed:
    """Write `source`, however it is compressed, into `sink` with another compression. Raises: Refused."""
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
    """Around making a file: when that fails, nothing of it stays."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> str:
        return self._path

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None and os.path.exists(self._path):
            os.unlink(self._path)


def _without(changes: list[Change], mountpoints: Collection[bytes]) -> list[Change]:
    """The changes without what was only made to mount something on, and the directories named for that alone."""
    if not mountpoints:
        return changes
    kept: list[Change] = []
    busy: set[tuple[bytes, ...]] = set()  # the directories that lead to what is kept
    left: set[tuple[bytes, ...]] = set()  # those that lead to what is not
    for change in reversed(changes):  # a directory stands before what is in it
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


def _noted(changes: Iterable[Change], made: Committed) -> Iterator[Change]:
    for change in changes:
        (made.equal if change.kind == compare.EQUAL else made.changes).append(change)
        yield change


def _with_other_names(changes: list[Change], old: View, new: View) -> list[Change]:
    """The changes, with the other names of changed files: our union shows one file under all of them, though the
    writable branch holds only those that were used. Sorted by path."""
    changed: dict[tuple[int, int], Node] = {}  # inode beneath -> what it is now
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


class _Known:
    """Fingerprints of files. Those of an unpacked layer were taken when it was unpacked, and need no reading."""

    def __init__(self) -> None:
        self._fingerprints: dict[
            str, dict[bytes, Fingerprint]
        ] = {}  # of layers, by their directory; filled when asked for

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


def _lowest(history: Sequence[History], layers: int) -> tuple[History, ...]:
    """The entries of a history up to its `layers`-th layer."""
    kept: list[History] = []
    for entry in history:
        if not entry.empty_layer:
            if not layers:
                break
            layers -= 1
        kept.append(entry)
    return tuple(kept)
