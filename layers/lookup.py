"""Look up the parts of an image in a store: its manifest, its configuration, its unpacked layers.

Imports no module for fetching or unpacking, because each start of a container imports this one.
"""

from __future__ import annotations

import errno
import json
import os
from typing import Any, Final, NamedTuple

from layers import config as configs
from layers import digest as digests
from layers import manifest as manifests
from layers.config import ImageConfig
from layers.digest import Digest
from layers.errors import NotFound, Refused
from layers.manifest import Descriptor, Index, Manifest, Platform
from layers.store import Store
from unionfs import store_files
from unionfs.trees.open_beneath import open_beneath

RECORD: Final = "layer.json"
DIFF: Final = "diff"


class Layer(NamedTuple):
    """One unpacked layer."""

    key: str  # the name of its directory
    directory: str  # for use as a lower branch
    record: dict[str, Any]  # the content of layer.json


def find_layer(store: Store, diff_id: Digest, chain_id: Digest) -> Layer | None:
    """The unpacked layer, in this or a further store, or None. Raises: Refused when its record is damaged, or its
    directory in a further store may not be used."""
    for digest in (diff_id, chain_id):
        key = digests.encoded(digest)
        for place in (store, *store.further):
            record = _record(place, key)
            # A layer under its diff id is valid for every stack, one under a chain id only for that stack.
            if record is not None and record.get("diff_id") == diff_id:
                directory = os.path.join(place.layers, key, DIFF)
                if place is not store:
                    check_foreign(place.root, directory)
                return Layer(key, directory, record)
    return None


def _record(store: Store, key: str) -> dict[str, Any] | None:
    """The content of layer.json; None if there is no such layer. Raises: Refused."""
    directory = os.path.join(store.layers, key)
    try:
        fd = store_files.open_file(os.path.join(directory, RECORD), os.O_RDONLY, shared=True)
        with open(fd, "rb") as file:
            record = json.loads(file.read(store_files.TEXT_MAX))
        if not isinstance(record, dict):
            raise ValueError
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError:
        hint = f"its owner lets others in: chmod 755 {store.root} {store.layers} {store.layers}/*"
        raise Refused("reading a layer", directory, "it is not open to this user", hint=hint) from None
    except (ValueError, RecursionError):
        hint = f"rm -r {directory}   (it is unpacked again when it is needed)"
        raise Refused("reading a layer", directory, f"its {RECORD} is damaged", hint=hint) from None
    return record


def check_foreign(root: str, directory: str) -> None:
    """Check that `directory`, layers/HEX/diff of the further store at `root`, is reached without a symbolic link, which
    could lead to files of the user, and belongs to the owner of `layers`. Raises: Refused, NotFound."""
    what = "using a layer of a further store"
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    owners = set()
    try:
        fd = os.open(root, flags)
        try:
            for name in os.path.relpath(directory, root).split(os.sep):
                below = open_beneath(fd, os.fsencode(name), flags)
                os.close(fd)
                fd = below
                if name != DIFF:
                    owners.add(os.fstat(fd).st_uid)
        finally:
            os.close(fd)
    except FileNotFoundError:
        raise NotFound(what, directory, "its owner has removed it", hint="pull the image again") from None
    except OSError as error:
        is_other = error.errno in (errno.ELOOP, errno.ENOTDIR)
        why = "it is no directory, or reached through a symbolic link" if is_other else error.strerror or str(error)
        raise Refused(what, directory, why) from None
    if len(owners) > 1:
        raise Refused(what, os.path.dirname(directory), "it belongs to another user than the store")


def read(
    store: Store, descriptor: Descriptor, platform: Platform | None = None
) -> tuple[Descriptor, Manifest, ImageConfig]:
    """Read the manifest and configuration of a descriptor; of an index, those for the platform (None: this machine's).

    Returns them with the manifest's descriptor. Raises: NotFound, Refused.
    """
    item = store.read_manifest(descriptor)
    if isinstance(item, Index):
        chosen = manifests.choose(item, platform or manifests.own_platform(), descriptor.digest)
        item = store.read_manifest(chosen)
        descriptor = chosen
    if isinstance(item, Index):
        raise Refused("reading an image", descriptor.digest, "an index within an index")
    return descriptor, item, config_of(item, store.read_blob(item.config.digest))


def config_of(item: Manifest, data: bytes) -> ImageConfig:
    """Parse the configuration `data` of an image and compare it with the manifest. Raises: Refused."""
    if item.config.media_type not in manifests.CONFIG_TYPES:
        kind = item.artifact_type or item.config.media_type
        raise Refused("reading an image", "", f"it is not a container image but {kind[:100]!r}")
    config = configs.parse(data)
    if len(config.diff_ids) != len(item.layers):
        why = f"the manifest has {len(item.layers)} layers, the configuration {len(config.diff_ids)}"
        raise Refused("reading an image", "", why)
    return config


def unpacked_layers(store: Store, descriptor: Descriptor) -> list[Layer]:
    """The layers of an image that are unpacked, bottom first."""
    _, _, config = read(store, descriptor)
    chain: Digest | None = None
    found = []
    for diff_id in config.diff_ids:
        chain = digests.chain(chain, diff_id)
        layer = find_layer(store, diff_id, chain)
        if layer is not None:
            found.append(layer)
    return found
