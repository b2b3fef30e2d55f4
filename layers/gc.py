"""Garbage collection: remove unreferenced blobs and unpacked layers, and the remains of processes that were killed.

All blobs that index.json refers to, through indexes and manifests down to configurations and layers, stay; so do the
unpacked layers of those images, the directories that the caller lists as used by containers, and, unless the caller
discards them, the layers of records of builds (see `build_records`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from layers import build_records
from layers import config as configs
from layers import digest as digests
from layers.digest import Digest
from layers.errors import LayerError, NotFound
from layers.manifest import CONFIG_TYPES, INDEX_TYPES, MANIFEST_TYPES, Descriptor, Index
from layers.store import Store
from unionfs import store_files

_ALGORITHMS: Final = ("sha256", "sha512")


@dataclass(slots=True)
class Freed:
    """The blobs and layers that were removed, or would be."""

    blobs: list[Digest] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)  # keys of unpacked layers
    size: int = 0  # of the blobs, and of indexes of layers
    steps: int = 0  # records of builds


class Busy(LayerError):  # noqa: N818 - reads as what it says
    """Another process is adding to the store."""


def collect(
    store: Store,
    in_use: Iterable[str] = (),
    bases: Iterable[Descriptor] = (),
    *,
    dry: bool = False,
    builds_too: bool = False,
) -> Freed:
    """Remove unreachable blobs and layers; with `dry` only list them. `in_use` are directories of unpacked layers,
    `bases` images that must stay. With `builds_too` the records of steps whose layers no image has are removed, too.

    If it is killed, it has removed a part of the garbage only. Raises: Busy; Refused when a manifest
    or index cannot be read, since the blobs it refers to are then unknown.
    """
    lock = store.try_exclusive()
    if lock is None:
        why = "another process is adding images"
        raise Busy("freeing space", store.root, why, hint="try again when the pull, load or commit has ended")
    try:
        blobs, keys = reachable(store, bases)
        keys |= {os.path.basename(os.path.dirname(os.path.normpath(path))) for path in in_use}
        freed = Freed()
        if builds_too:
            freed.steps = build_records.discard(store, lambda diff_id: digests.encoded(diff_id) in keys, dry=dry)
        for layer in build_records.layers(store):
            blobs.add(layer.descriptor.digest)
            keys.add(digests.encoded(layer.diff_id))
        _remove_layers(store, keys, freed, dry)
        _remove_indexes(store, keys, freed, dry)
        _remove_blobs(store, blobs, freed, dry)
        if not dry:
            _sweep(store)
        return freed
    finally:
        os.close(lock)


def reachable(store: Store, bases: Iterable[Descriptor] = ()) -> tuple[set[Digest], set[str]]:
    """The blobs reachable from the store's images and `bases`, and the keys their layers may be unpacked under."""
    blobs: set[Digest] = set()
    keys: set[str] = set()
    todo: list[Descriptor] = [*(image.descriptor for image in store.list_images()), *bases]
    while todo:
        descriptor = todo.pop()
        if descriptor.digest in blobs:
            continue
        blobs.add(descriptor.digest)
        if descriptor.media_type in INDEX_TYPES + MANIFEST_TYPES:
            todo += _referred(store, descriptor)
        elif descriptor.media_type in CONFIG_TYPES:
            keys.update(_keys(store, descriptor))
    return blobs, keys


def _referred(store: Store, descriptor: Descriptor) -> list[Descriptor]:
    try:
        item = store.read_manifest(descriptor)
    except NotFound:
        return []  # an image of another platform that was never fetched
    if isinstance(item, Index):
        return list(item.manifests)
    return [item.config, *item.layers, *([item.subject] if item.subject is not None else [])]


def _keys(store: Store, descriptor: Descriptor) -> Iterator[str]:
    try:
        config = configs.parse(store.read_blob(descriptor.digest))
    except NotFound:
        return
    chain: Digest | None = None
    for diff_id in config.diff_ids:
        chain = digests.chain(chain, diff_id)
        yield digests.encoded(diff_id)
        yield digests.encoded(chain)


def _remove_layers(store: Store, keys: set[str], freed: Freed, dry: bool) -> None:
    for key in sorted(store_files.list_directory(store.layers)):
        if key not in keys:
            if not dry:
                store.discard(os.path.join(store.layers, key))
            freed.layers.append(key)


def _remove_indexes(store: Store, keys: set[str], freed: Freed, dry: bool) -> None:
    for name in sorted(store_files.list_directory(store.indexes)) if os.path.lexists(store.indexes) else ():
        if name.partition(".")[0] not in keys:
            path = os.path.join(store.indexes, name)
            with contextlib.suppress(FileNotFoundError):
                freed.size += os.lstat(path).st_size
                if not dry:
                    os.unlink(path)


def _remove_blobs(store: Store, blobs: set[Digest], freed: Freed, dry: bool) -> None:
    for algorithm in _ALGORITHMS:
        directory = os.path.join(store.images, "blobs", algorithm)
        names = store_files.list_directory(directory) if os.path.lexists(directory) else []
        for name in sorted(names):
            digest = Digest(f"{algorithm}:{name}")
            if digest not in blobs:
                path = os.path.join(directory, name)
                with contextlib.suppress(FileNotFoundError):
                    freed.size += os.stat(path).st_size
                    if not dry:
                        os.unlink(path)
                    freed.blobs.append(digest)


def _sweep(store: Store) -> None:
    """Remove what killed processes left unfinished. The exclusive lock is held, so no living process uses any of it."""
    store.sweep_aside()
    for name in store_files.list_directory(store.partial):
        os.unlink(os.path.join(store.partial, name))
    store.sweep_locks()
