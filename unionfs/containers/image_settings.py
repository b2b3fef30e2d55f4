"""An image as something to run: found or fetched, its layers unpacked, its settings resolved as Docker resolves them.

Knows images and jobs. Does not know command lines or containers' records. Whatever is imported for registries is
imported only when something must be fetched.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from layers import image
from layers.attributes import Options
from layers.config import Settings
from layers.errors import LayerError, NotFound
from layers.image import Remote
from layers.manifest import Descriptor, Platform
from layers.store import Store
from unionfs.cli import image_store
from unionfs.cli.errors import OWN_FAILURE, CommandError, PullFailedError
from unionfs.cli.progress import shown

ALWAYS: Final = "always"
MISSING: Final = "missing"
NEVER: Final = "never"


@dataclass(frozen=True, slots=True)
class Ready:
    """An image whose layers are unpacked."""

    name: str  # as it was asked for
    descriptor: Descriptor  # of the manifest
    settings: Settings
    lowers: tuple[str, ...]  # top first


@dataclass(frozen=True, slots=True)
class Fetch:
    """How an image is fetched that is not there."""

    when: str = MISSING
    platform: Platform | None = None
    remote: Remote | None = None
    quiet: bool = False


def is_known(store: Store, name: str) -> bool:
    """Whether the store has an image of this name."""
    try:
        store.find(name)
    except LayerError:
        return False
    return True


def ready(store: Store, name: str, fetch: Fetch) -> Ready:
    """The image, fetched and unpacked if need be. Raises: CommandError, PullFailedError.

    Preconditions: within `store.using`, else its layers may be removed at any moment.
    """
    with image_store.failures():
        if fetch.when == ALWAYS:
            _in_child(functools.partial(_pull, store, name, fetch))
        found = _look_up(store, name, fetch.platform)
        if found is None and fetch.when == NEVER and not is_known(store, name):
            raise CommandError(f"run: no such image: {name}", hint=f"unionfs pull {name}", status=OWN_FAILURE)
        if found is None:
            _in_child(functools.partial(_unpack_or_pull, store, name, fetch))
            found = _look_up(store, name, fetch.platform)
    if found is None:
        raise CommandError(f"run: the image {name} was removed at this moment", status=OWN_FAILURE)
    return found


def _look_up(store: Store, name: str, platform: Platform | None) -> Ready | None:
    """The image if it is there, unpacked."""
    try:
        descriptor, _, config = image.read(store, store.find(name).descriptor, platform)
    except NotFound:
        return None
    if platform is not None and not _is_for(config.platform, platform):
        return None
    layers = image.unpacked_layers(store, descriptor)
    if len(layers) != len(config.diff_ids):
        return None
    return Ready(name, descriptor, config.settings, tuple(layer.directory for layer in reversed(layers)))


def _is_for(has: Platform, wanted: Platform) -> bool:
    return (has.os, has.architecture) == (wanted.os, wanted.architecture)


def _in_child(body: Callable[[Options], int]) -> None:
    """Do it where all owners of layers exist. Raises: PullFailedError when that failed in a process of its own."""

    def with_options() -> int:
        with image_store.failures():
            return body(Options(owners=image_store.owners_here()))

    if image_store.with_ids(with_options):
        raise PullFailedError


def _unpack_or_pull(store: Store, name: str, fetch: Fetch, options: Options) -> int:
    """Another tool may have put the image there, whose layers nobody has unpacked."""
    try:
        with shown(quiet=fetch.quiet) as progress, store.adding():
            found = store.find(name)
            descriptor, _, config = image.read(store, found.descriptor, fetch.platform)
            if fetch.platform is None or _is_for(config.platform, fetch.platform):
                image.make_ready(store, descriptor, options, progress)
                return 0
    except NotFound:
        if fetch.when == NEVER:
            raise
    if not fetch.quiet:
        print(f"unionfs: {name} is not here: pulling it", file=sys.stderr)
    return _pull(store, name, fetch, options)


def _pull(store: Store, name: str, fetch: Fetch, options: Options) -> int:
    import trio

    with shown(quiet=fetch.quiet) as progress:
        pull = functools.partial(
            image.pull, store, name, platform=fetch.platform, remote=fetch.remote, options=options, progress=progress
        )
        trio.run(pull)
    return 0


# -- settings ----------------------------------------------------------------------------------------------------------


def command_of(
    settings: Settings, entrypoint: str | None, words: Iterable[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(entrypoint, arguments): the command line's over the image's. An entrypoint that is given drops the image's
    command; the empty one drops the image's entrypoint, too."""
    given = tuple(words)
    if entrypoint is None:
        return settings.entrypoint or (), given or settings.cmd or ()
    return (entrypoint,) if entrypoint else (), given


def environment_of(settings: Settings, given: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """The image's variables with those of the command line over them."""
    merged = {}
    for line in settings.env:
        name, equals, value = line.partition("=")
        if name and equals:
            merged[name] = value
    return tuple({**merged, **dict(given)}.items())


def volumes_of(settings: Settings, taken: Iterable[str]) -> tuple[str, ...]:
    """Where the image wants volumes and the command line has put nothing."""
    normal = ("/" + os.path.normpath(path).lstrip("/") for path in settings.volumes if path.startswith("/"))
    covered = {"/", *taken}
    return tuple(path for path in dict.fromkeys(normal) if path not in covered)
