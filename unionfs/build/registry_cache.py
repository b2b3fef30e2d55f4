"""Caches of builds in registries (--cache-from, --cache-to): the form is `layers.build_cache`'s.

If the cache of a registry is missing or the registry does not answer, the build continues without it.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from layers import build_records
from layers.build_records import Step
from layers.store import Store
from unionfs.build.copy_layer import own_options
from unionfs.build.jobs import call
from unionfs.containers.errors import ContainerError
from unionfs.containers.images import Fetch

if TYPE_CHECKING:
    from layers.image import Remote


class RegistryCache:
    """A cache whose list of steps was fetched."""

    def __init__(self, name: str, steps: Mapping[str, Step], remote: Remote, warn: Callable[[str], None]) -> None:
        self._name: Final = name
        self.steps: Final = steps  # by key
        self._remote: Final = remote
        self._warn: Final = warn

    def fetch(self, store: Store, key: str) -> bool:
        """Put the record of a step, and its layer, into the store. Returns whether that was possible; a failure is a
        warning."""

        def body() -> bytes:
            import trio

            from layers import build_cache

            step = self.steps[key]
            with store.adding():
                if step.layer is not None:
                    trio.run(build_cache.fetch_layer, store, self._name, step, own_options(), self._remote)
                build_records.put(store, key, step)
            return b""

        try:
            call(body)
        except ContainerError as error:
            self._warn(f"warning: the cache {self._name} is not used any more: {error}")
            return False
        return True


def opened(store: Store, names: Sequence[str], fetch: Fetch, warn: Callable[[str], None]) -> list[RegistryCache]:
    """The caches of --cache-from that can be read; for each other one a warning."""
    found = []
    remote = fetch.remote() or _remote() if names else None
    for name in names:
        assert remote is not None
        try:
            steps = pickle.loads(call(functools.partial(_steps, store, name, remote)))
        except ContainerError as error:
            warn(f"warning: the cache {name} is not used: {error}")
            continue
        found.append(RegistryCache(name, steps, remote, warn))
    return found


def _steps(store: Store, name: str, remote: Remote) -> bytes:
    import trio

    from layers import build_cache

    with store.adding():
        return pickle.dumps(trio.run(build_cache.fetch_steps, store, name, remote))


def push(store: Store, name: str, steps: Mapping[str, Step], fetch: Fetch) -> None:
    """Send the steps of a build to a registry (--cache-to). Raises: ContainerError."""
    remote = fetch.remote() or _remote()

    def body() -> bytes:
        import trio

        from layers import build_cache

        with fetch.shown() as progress, store.adding():
            trio.run(build_cache.push, store, name, steps, remote, progress)
        return b""

    try:
        call(body)
    except ContainerError as error:
        raise ContainerError("sending the cache", name, str(error), hint=error.hint) from None


def _remote() -> Remote:
    from layers.image import Remote

    return Remote()
