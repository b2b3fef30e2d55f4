"""The records of builds in a store: the result of each step, digests of files of contexts, caches of commands.

    ROOT/build/steps/KEY      a step that was executed: JSON, see `Step`. KEY is 64 hex digits, computed by the builder
    from all values that the step depends on ROOT/build/digests/NAME   digests of the files of one context, in the form
    of their maker ROOT/build/mounts/NAME    the directories that RUN --mount=type=cache keeps between builds

A record is replaced atomically, and needs no lock: if two builds execute one step, either result is right. The layers
of records are not garbage until `discard` removes the records. A record whose layer is missing is ignored.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from layers import digest as digests
from layers import lookup
from layers.digest import Digest
from layers.errors import Malformed
from layers.manifest import Descriptor
from layers.store import Store
from unionfs import store_files

_VERSION: Final = 1
KEY: Final = re.compile(r"[0-9a-f]{64}")
"""The form of the keys and ids of steps."""
_LARGEST: Final = 1 << 20


class StepLayer(NamedTuple):
    """The layer that a step has made."""

    descriptor: Descriptor  # of its blob
    diff_id: Digest
    tar_size: int  # bytes, not compressed


class Step(NamedTuple):
    """The result of a step."""

    id: str  # for the keys of later steps; a step that is executed again gets another id
    created: str  # RFC 3339
    layer: StepLayer | None = None  # None: it changed settings only
    notes: Mapping[str, Any] = {}  # for reports


def directory(store: Store, part: str) -> str:
    """The directory of `part`: steps, digests or mounts."""
    return os.path.join(store.root, "build", part)


def find(store: Store, key: str) -> Step | None:
    """The record of a step, if it exists and the store has its layer, as a blob and unpacked."""
    step = _read(os.path.join(directory(store, "steps"), key))
    return step if step is None or step.layer is None or has_layer(store, step.layer) else None


def has_layer(store: Store, layer: StepLayer) -> bool:
    """Whether the store has a layer, as a blob and unpacked."""
    is_there = store.has(layer.descriptor.digest, layer.descriptor.size)
    return is_there and os.path.exists(layer_directory(store, layer.diff_id))


def layer_directory(store: Store, diff_id: Digest) -> str:
    """The directory in which a layer of a build is unpacked. It never depends on the layers beneath, so its name is its
    diff id."""
    return os.path.join(store.layers, digests.encoded(diff_id), lookup.DIFF)


def put(store: Store, key: str, step: Step) -> None:
    """Write a record. Preconditions: within `store.adding`. Raises: OSError."""
    write(store, "steps", key, json.dumps(to_json(step)).encode("ascii"))


def to_json(step: Step) -> dict[str, Any]:
    """The JSON object of a step."""
    value: dict[str, Any] = {"version": _VERSION, "id": step.id, "created": step.created, "notes": dict(step.notes)}
    if step.layer is not None:
        descriptor = step.layer.descriptor
        value["layer"] = {
            "mediaType": descriptor.media_type,
            "digest": descriptor.digest,
            "size": descriptor.size,
            "diff_id": step.layer.diff_id,
            "tar_size": step.layer.tar_size,
        }
    return value


def write(store: Store, part: str, name: str, data: bytes) -> None:
    """Replace a file of `part` atomically. Preconditions: within `store.adding`. Raises: OSError."""
    os.makedirs(directory(store, part), 0o700, exist_ok=True)
    aside = store.new_aside()
    store_files.write_file(aside, data)
    os.rename(aside, os.path.join(directory(store, part), name))


def layers(store: Store) -> Iterator[StepLayer]:
    """The layers of all records, which are no garbage."""
    for name in _names(store, "steps"):
        step = _read(os.path.join(directory(store, "steps"), name))
        if step is not None and step.layer is not None:
            yield step.layer


def discard(store: Store, is_needed: Callable[[Digest], bool], *, dry: bool = False) -> int:
    """Remove the records of steps without a layer and of layers, by their diff ids, that no image needs, the digests
    and the caches of RUN. Returns the number of records that were, or with `dry` would be, removed.

    Preconditions: the lock of `try_exclusive` is held, with the ids that the caches' files have. Raises: OSError.
    """
    count = 0
    for name in _names(store, "steps"):
        path = os.path.join(directory(store, "steps"), name)
        step = _read(path)
        if step is None or step.layer is None or not is_needed(step.layer.diff_id):
            count += 1
            if not dry:
                os.unlink(path)
    if not dry:
        for part in ("digests", "mounts"):
            if os.path.isdir(directory(store, part)):
                store.discard(directory(store, part))
    return count


def _names(store: Store, part: str) -> list[str]:
    try:
        return store_files.list_directory(directory(store, part))
    except FileNotFoundError:
        return []


def _read(path: str) -> Step | None:
    """A record; None if the file has no record of this version."""
    if not KEY.fullmatch(os.path.basename(path)):
        return None
    try:
        return from_json(json.loads(store_files.read_file(path, _LARGEST)))
    except (OSError, ValueError, KeyError, TypeError, OverflowError, Malformed):
        return None


def from_json(value: Any) -> Step:
    """The step that a JSON object describes. Raises: ValueError, KeyError, TypeError, OverflowError or Malformed for
    another form or version."""
    if value["version"] != _VERSION:
        raise ValueError("another version")
    layer = None
    if "layer" in value:
        found = value["layer"]
        descriptor = Descriptor(str(found["mediaType"]), digests.parse(found["digest"]), int(found["size"]))
        layer = StepLayer(descriptor, digests.parse(found["diff_id"]), int(found["tar_size"]))
    return Step(str(value["id"]), str(value["created"]), layer, dict(value["notes"]))
