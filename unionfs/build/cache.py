"""Keys of steps, computed from all that the result of a step depends on, and the records found by them.

As in BuildKit, a key contains the instruction with its variables replaced, the result that it is executed on, the
arguments that it may see, and digests, modes and owners of copied files, but no times. Of secrets it contains the names
only.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from typing import Final

from layers import build_records
from layers.build_records import Step, StepLayer
from layers.digest import Digest
from layers.store import Store
from unionfs.build.registry_cache import RegistryCache

_VERSION: Final = "1"  # of the meaning of steps; a new number invalidates all records


def key(*parts: object) -> str:
    """The key of a step, from texts, numbers, None, and lists and mappings of these."""
    text = json.dumps([_VERSION, *parts], sort_keys=True, default=list)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def new_id() -> str:
    """The id of a step whose result is not determined by its key: a command may have another result every time."""
    return os.urandom(32).hex()


class Cache:
    """The records of steps of a store, and of caches in registries (--cache-from)."""

    def __init__(self, store: Store, *, is_read: bool, elsewhere: Sequence[RegistryCache] = ()) -> None:
        """Unless `is_read`, nothing is found; steps are recorded all the same."""
        self._store: Final = store
        self._is_read: Final = is_read
        self._elsewhere: Final = list(elsewhere)  # a cache that fails is removed
        self.used: Final[dict[str, Step]] = {}  # steps that were found or put, by key; added to only

    def find(self, step_key: str) -> Step | None:
        """The record of a step. One of a registry is fetched with its layer, and put into the store."""
        if not self._is_read:
            return None
        step = build_records.find(self._store, step_key)
        for cache in [one for one in self._elsewhere if step is None and step_key in one.steps]:
            if cache.fetch(self._store, step_key):
                step = build_records.find(self._store, step_key)
                break
            self._elsewhere.remove(cache)
        if step is not None:
            self.used[step_key] = step
        return step

    def find_layer(self, step_key: str) -> tuple[Step, StepLayer] | None:
        """As `find`, of a step that always has a layer. A record without one is broken, and ignored."""
        step = self.find(step_key)
        return (step, step.layer) if step is not None and step.layer is not None else None

    def put(self, step_key: str, step: Step) -> None:
        """Raises: OSError."""
        build_records.put(self._store, step_key, step)
        self.used[step_key] = step

    def directory(self, diff_id: Digest) -> str:
        """The directory in which a layer is unpacked, for use as a lower."""
        return build_records.layer_directory(self._store, diff_id)
