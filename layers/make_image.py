"""Make new images of directories and tars: commit, squash, import.

Knows trees, packing and the store. `changed_layer` makes the layer of a writable branch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import IO, Final

from layers import compare, image, lookup, pack, unpacked
from layers import config as configs
from layers import digest as digests
from layers import manifest as manifests
from layers.attributes import Options
from layers.changed_layer import RemovedOnFailure, described, media_type, put_changes, put_layer
from layers.compare import Change
from layers.compression import GZIP, CountingReader, Readable, compressor, decompressed
from layers.config import History, ImageConfig, Settings
from layers.digest import Digest
from layers.errors import LayerError
from layers.instructions import with_change
from layers.manifest import OCI_CONFIG, OCI_MANIFEST, Descriptor, Manifest, Platform
from layers.pack import OnShrunk, Packed
from layers.progress import Progress, Silent
from layers.store import Store
from layers.tree import LayerTrees


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
    """A new image. `changes` are those of its layer, `equal` the files that were left out because they do not
    differ."""

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
    frozen: Sequence[str] = (),
    beneath: Sequence[str] = (),
    mountpoints: Collection[bytes] = (),
    options: Options | None = None,
    progress: Progress | None = None,
    on_shrunk: OnShrunk = None,
) -> Committed:
    """Make an image of `base` (a name, id or digest; None for none) and the changes in the writable branch `upper`.

    With `is_whole` the upper holds the whole tree and no marks. The directories `frozen`, topmost first, hold changes,
    too: they were the upper before (unionfs freeze). Files that equal those of the directories `beneath` the
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
        made = put_changes(
            store,
            upper,
            lowers,
            wanted.compression,
            report,
            is_whole=is_whole,
            frozen=frozen,
            beneath=beneath,
            mountpoints=mountpoints,
            epoch=epoch,
            on_shrunk=on_shrunk,
        )
        created = configs.timestamp(time.time() if epoch is None else epoch.seconds)
        entry = History(created, wanted.created_by, wanted.author, wanted.message)
        config = with_layer(config, made.packed.diff_id, entry, wanted)
        digest, image_id = put_image(store, config, (*layers, made.descriptor), wanted.name)
    return Committed(digest, image_id, made.packed, made.changes, made.equal)


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
            packed, layer = put_layer(store, items, wanted.compression, epoch, Silent(), on_shrunk)
        created = configs.timestamp(time.time() if epoch is None else epoch.seconds)
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
        created = configs.timestamp(time.time() if epoch is None else epoch.seconds)
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
    return media_type(layer.compression)


def _recompress(
    store: Store, source: Readable, compression: str, options: Options, progress: Progress
) -> tuple[Packed, Descriptor]:
    """Store the tar in `source` as a blob of the given compression."""
    aside = store.new_aside()
    progress.begin("layer", "importing", None)
    with RemovedOnFailure(aside) as path:
        with open(path, "wb") as sink:
            packed = recompressed(source, sink, compression, options, lambda n: progress.advance("layer", n))
        store.put_file(path, packed.digest)
    progress.end("layer", "imported")
    return packed, described(packed, compression)


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
