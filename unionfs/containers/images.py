"""Images for containers: find or fetch them, unpack layers with the ids they need, resolve settings as Docker does.

Layers of an ordinary user have files of many owners. They are made and removed in a child that is root of a user
namespace with the user's subordinate ids (`with_ids`), which has all these ids. Without subordinate ids, owners are
recorded beside the files. Modules for registries are imported only for fetching.
"""

from __future__ import annotations

import errno
import functools
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

from layers import lookup
from layers.config import Settings
from layers.digest import Digest
from layers.errors import LayerError, NotFound
from layers.manifest import Descriptor, Platform
from layers.store import Store
from unionfs.containers import config, forked_calls
from unionfs.containers.errors import BrokenRecordError, ContainerError
from unionfs.containers.ids import my_ids
from unionfs.containers.record import Container
from unionfs.containers.store import ELSEWHERE, ContainerStore
from unionfs.launcher import userns

if TYPE_CHECKING:
    from layers.attributes import Options
    from layers.image import Remote
    from layers.progress import Progress

ALWAYS: Final = "always"
MISSING: Final = "missing"
NEVER: Final = "never"

Shown = Callable[[], "AbstractContextManager[Progress]"]
"""A context that shows progress, possibly in another process."""


class Unpacked(NamedTuple):
    """An image whose layers are unpacked."""

    name: str  # as on the command line
    descriptor: Descriptor  # of the manifest
    settings: Settings
    lowers: tuple[str, ...]  # top first
    store: str  # root of the store that has the image

    @property
    def file(self) -> None:
        """There is no image file."""

    @property
    def without_entrypoint(self) -> tuple[str, ...]:
        """The entrypoint that replaces the image's if the user wants none: empty."""
        return ()

    def facts(self, root: str) -> config.Image:
        """The values of the record of a container in the store at `root`."""
        exposed, store = tuple(self.settings.exposed_ports), "" if self.store == root else self.store
        return config.Image(self.name, self.descriptor.digest, self.descriptor.media_type, exposed, store)


class Fetch(NamedTuple):
    """How an image that is not in the store is fetched."""

    shown: Shown
    note: Callable[[str], None]  # prints a line with the name of the image that is pulled
    when: str = MISSING
    platform: Platform | None = None
    remote: Callable[[], Remote | None] = lambda: None  # may ask for a password; called before anything is fetched


def is_known(store: Store, name: str) -> bool:
    """Whether the store has an image of this name."""
    try:
        store.find(name)
    except LayerError:
        return False
    return True


def of_others(store: Store, name: str, fetch: Fetch) -> Unpacked | None:
    """The image if only further stores have it, with all its layers. Then nothing is written, not even a lock: this
    store cannot protect layers that the owner of another store may remove. None otherwise. Raises: ContainerError."""
    if not store.further or fetch.when == ALWAYS:
        return None
    with failures():
        found = _look_up(store, name, fetch.platform)
    own = store.root + os.sep
    if found is None or found.store == store.root or any(lower.startswith(own) for lower in found.lowers):
        return None
    return found


def unpacked(store: Store, name: str, fetch: Fetch) -> Unpacked:
    """The image; it is fetched and unpacked if necessary. Raises: ContainerError, LaunchError.

    Preconditions: within `store.using`, else its layers may be removed at any moment.
    """
    with failures():
        if fetch.when == ALWAYS:
            _in_child(functools.partial(_pull, store, name, fetch, fetch.remote()))
        found = _look_up(store, name, fetch.platform)
        if found is None and fetch.when == NEVER and not is_known(store, name):
            raise ContainerError("", "", f"run: no such image: {name}", hint=f"unionfs pull {name}")
        if found is None:
            _in_child(functools.partial(_unpack_or_pull, store, name, fetch, fetch.remote()))
            found = _look_up(store, name, fetch.platform)
    if found is None:
        raise ContainerError("", "", f"run: the image {name} was removed meanwhile")
    return found


def _look_up(store: Store, name: str, platform: Platform | None) -> Unpacked | None:
    """The image if the store has it, with its layers unpacked; else None."""
    try:
        found = store.find(name)
        descriptor, _, image_config = lookup.read(store, found.descriptor, platform)
    except NotFound:
        return None
    if platform is not None and not _is_for(image_config.platform, platform):
        return None
    layers = lookup.unpacked_layers(store, descriptor)
    if len(layers) != len(image_config.diff_ids):
        return None
    lowers = tuple(layer.directory for layer in reversed(layers))
    return Unpacked(name, descriptor, image_config.settings, lowers, found.root)


def _is_for(has: Platform, wanted: Platform) -> bool:
    return (has.os, has.architecture) == (wanted.os, wanted.architecture)


def _in_child(body: Callable[[Options], None]) -> None:
    """Call `body` in a child that has all ids of layers. Raises: ContainerError, LaunchError."""

    from layers.attributes import Options

    def with_options() -> int:
        body(Options(owners=owners_here()))
        return 0

    if status := with_ids(with_options):
        why = "it was interrupted" if status > 128 else "its process ended unexpectedly"
        raise ContainerError("fetching the image", "", why)


def _unpack_or_pull(store: Store, name: str, fetch: Fetch, remote: Remote | None, options: Options) -> None:
    """Unpack the layers of an image that another tool has stored; pull the image if it is not in the store."""
    from layers import image

    try:
        with fetch.shown() as progress, store.adding():
            found = store.find(name)
            descriptor, _, image_config = lookup.read(store, found.descriptor, fetch.platform)
            if fetch.platform is None or _is_for(image_config.platform, fetch.platform):
                image.unpack_image(store, descriptor, options, progress)
                return
    except NotFound:
        if fetch.when == NEVER:
            raise
    fetch.note(f"{name} is not in the store: pulling it")
    _pull(store, name, fetch, remote, options)


def _pull(store: Store, name: str, fetch: Fetch, remote: Remote | None, options: Options) -> None:
    import trio

    from layers import image

    with fetch.shown() as progress:
        pull = functools.partial(
            image.pull, store, name, platform=fetch.platform, remote=remote, options=options, progress=progress
        )
        trio.run(pull)


# -- the ids of layers -------------------------------------------------------------------------------------------------


def with_ids(body: Callable[[], int]) -> int:
    """Call `body` in a process that has all ids of layers; return its exit code, and raise its exceptions.

    For an ordinary user the process is a child in a user namespace with all ids of the user: OSError, LayerError,
    ContainerError and LaunchError of `body` are sent to this process and raised as ContainerError. SIGINT and SIGTERM
    are forwarded to the child, and it ends with this process.
    """
    id_map = my_ids()
    if id_map is None:
        with failures():
            return body()
    parent = os.getpid()

    def in_child() -> int:
        _end_with(parent)
        with failures():
            return body()

    return forked_calls.run(
        in_child, lambda child: userns.fork(id_map, 0, child), pass_on=(signal.SIGINT, signal.SIGTERM)
    )


def _end_with(parent: int) -> None:
    from unionfs.syscalls.namespaces import set_parent_death_signal

    set_parent_death_signal(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def owners_here() -> str:
    """How this process sets owners of layers: the namespace of a user without subordinate ids has one id."""
    from layers import owners

    with open("/proc/self/uid_map", encoding="ascii") as file:
        count = sum(int(line.split()[2]) for line in file)
    return owners.MAPPED if count > 1 else owners.NOTED


_FULL: Final = "`layers gc` removes unused layers; another attempt continues with the layers that were fetched"


@contextmanager
def failures(what: str = "working on images", if_full: str = _FULL) -> Iterator[None]:
    """Convert LayerError and OSError to ContainerError, `if_full` being the hint for a full disk."""
    try:
        yield
    except LayerError as error:
        raise ContainerError("", "", str(error), hint=error.hint, status=error.exit_code) from error
    except BrokenPipeError:
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = if_full if full else ELSEWHERE if error.errno == errno.EROFS else ""
        raise ContainerError.of(what, error, hint=hint) from error


@contextmanager
def writing_to(what: str, output: str) -> Iterator[None]:
    """Convert an error of writing (a full disk) to a ContainerError that names `output` instead of the store."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise ContainerError(what, output, error.strerror or str(error)) from error


# -- layers and manifests that containers use --------------------------------------------------------------------------


def layers_in_use(root: str) -> list[str]:
    """The layer directories that the containers of the store at `root` use.

    Raises: BrokenRecordError: which layers that container needs is unknown.
    """
    return [lower for container in _all(root) for lower in container.config.rootfs.lowers]


def bases(root: str) -> list[Descriptor]:
    """The manifests of images that containers use: `commit` needs them.

    Raises: as `layers_in_use`.
    """
    images = [container.config.image for container in _all(root)]
    return [Descriptor(one.media_type, Digest(one.digest), 0) for one in images if one is not None]


def _all(root: str) -> list[Container]:
    def refuse(error: BrokenRecordError) -> None:
        raise error

    return ContainerStore(root).list(refuse)


# -- settings ----------------------------------------------------------------------------------------------------------


def command_of(
    settings: Settings, entrypoint: str | None, words: Iterable[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(entrypoint, arguments) of the command line, else of the image. An entrypoint of the command line drops the
    image's command; an empty one drops the image's entrypoint, too."""
    given = tuple(words)
    if entrypoint is None:
        return settings.entrypoint or (), given or settings.cmd or ()
    return (entrypoint,) if entrypoint else (), given


def environment_of(settings: Settings, given: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """The image's variables, overridden by those of the command line."""
    merged = {}
    for line in settings.env:
        name, equals, value = line.partition("=")
        if name and equals:
            merged[name] = value
    return tuple({**merged, **dict(given)}.items())


def volumes_of(settings: Settings, taken: Iterable[str]) -> tuple[str, ...]:
    """The targets of the image's volumes at which the command line mounts nothing."""
    normal = ("/" + os.path.normpath(path).lstrip("/") for path in settings.volumes if path.startswith("/"))
    covered = {"/", *taken}
    return tuple(path for path in dict.fromkeys(normal) if path not in covered)
