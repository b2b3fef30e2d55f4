"""`unionfs run`: run a command in a container whose root filesystem is a union, and return its exit code."""

from __future__ import annotations

import functools
import os
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from unionfs import store_files
from unionfs.cli import (
    as_me_flags,
    container_flags,
    mount_flags,
    notes,
    parents,
    store_flags,
)
from unionfs.cli.errors import CommandError
from unionfs.containers import background, create, start
from unionfs.containers.config import ContainerConfig, Mounts
from unionfs.containers.record import Container
from unionfs.containers.store import ContainerStore
from unionfs.core.options import PARTIAL_FROM
from unionfs.drivers.driver import DriverError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from layers.image import Remote
    from layers.progress import Progress
    from layers.store import Store
    from unionfs.containers.image_mount import FromFile
    from unionfs.containers.images import Unpacked

_DESCRIPTION: Final = """\
Run COMMAND in a container. Its root filesystem is an image, which is pulled if it is not in the store; a directory, or
/ for this machine itself; or the union of the directories of --lower, the topmost first (then all
arguments are the command). A first word without a leading slash is an image if the store has it, else a
directory below the current one, else an image to pull. The image or directory is not changed: changes are written
to a directory of the container, see `unionfs diff NAME` and `unionfs commit NAME IMAGE`.

The image's settings (ENTRYPOINT, CMD, ENV, USER, WORKDIR, VOLUME, STOPSIGNAL) apply unless flags say otherwise.

The command needs no root. Root in the container is you outside; other ids are your subordinate ids (/etc/subuid)."""

_EPILOG: Final = """\
examples:
  unionfs run -it --name box debian:12                 a shell in an image
  unionfs run -d --name web -e PORT=80 user/web:v0.1   in the background: unionfs logs web, unionfs stop web
  unionfs run --rm -it / bash                          a shell on a copy-on-write view of this machine
  unionfs run --name web --lower app --lower debian python3 /srv/app.py
  unionfs run --rm -v .:/src -w /src debian make
  unionfs run --as-me debian make                      as this user, here, in the home of this machine

signals are forwarded to the command, except SEGV, BUS, FPE and ILL: `unionfs kill -s` sends them.

exit codes: the command's own, 128+N if signal N killed it, 125 if unionfs failed, 126 if the command cannot be
executed, 127 if it was not found."""


def main(argv: list[str]) -> int:
    """Run `unionfs run ARGV`."""
    arguments = container_flags.parser("run", _DESCRIPTION, _EPILOG).parse(argv)
    container = make(arguments)
    if container is None:
        return 0
    run = functools.partial(start.run, container, notes.warn, debug=arguments.debug)
    if not arguments.detach:
        return run(parents.leave_beside_container)

    def run_detached(ready: Callable[[], None]) -> int:
        return run(functools.partial(parents.leave_beside_container, ready), attached=False)

    background.run(container, run_detached)
    print(container.id)
    return 0


def make(arguments: Namespace) -> Container | None:
    """Make the container that the command line describes. Returns None with --dry-run, which only describes it.

    Raises: CommandError, ContainerError, LaunchError.
    """
    words = list(arguments.words)
    if words[:1] == ["--"]:
        del words[0]
    if not arguments.lower and not words:
        raise CommandError("run: no root filesystem given", hint="see unionfs run --help")
    further = store_flags.image_stores(arguments)
    images_root = os.path.realpath(arguments.root or store_files.default_root())
    arguments.root = _root_of_containers(arguments)
    store, name = ContainerStore(arguments.root), arguments.name or ""
    if arguments.pool:
        _use_pool(arguments, store.root)
    if not arguments.lower and (path := _image_file(words[0], images_root, further)) is not None:
        from unionfs.containers import image_mount

        config = container_flags.config_of(arguments)
        config = _config_on_image(config, arguments, words, image_mount.read(path), store.root)
        config = as_me_flags.apply(config, arguments)
        return make_or_describe(store, config, name, dry_run=arguments.dry_run)
    if arguments.lower or _is_directory(words[0], images_root, further):
        config = as_me_flags.apply(_config_on_directories(arguments, words), arguments)
        return make_or_describe(store, config, name, dry_run=arguments.dry_run)
    from layers.store import Store

    config = container_flags.config_of(arguments)  # invalid flags are reported before anything is pulled
    images = Store(images_root, further)
    with _image(arguments, words[0], images) as image:
        config = _config_on_image(config, arguments, words, image, store.root)
        config = as_me_flags.apply(config, arguments)
        return make_or_describe(store, config, name, dry_run=arguments.dry_run)


def _use_pool(arguments: Namespace, root: str) -> None:
    if arguments.driver != "devicemapper":
        raise mount_flags.bad("driver", arguments.driver, "--pool is for devicemapper")
    if arguments.dry_run:
        return
    from unionfs.drivers import devicemapper

    try:
        devicemapper.use_pool(root, os.path.abspath(arguments.pool))
    except DriverError as error:
        raise CommandError(f"run: {error}", hint=error.hint) from error
    except OSError as error:
        raise CommandError.of("choosing the pool", error) from error


def make_or_describe(store: ContainerStore, config: ContainerConfig, name: str, *, dry_run: bool) -> Container | None:
    """Make the container; with `dry_run` print the steps instead, and return None."""
    if not dry_run:
        return create.create(store, config, name)
    print("\n".join(create.describe(create.new(store, config, name))))
    return None


def _root_of_containers(arguments: Namespace) -> str | None:
    """The root of the store of containers: in the scratch directory, if there is one. Raises: ContainerError."""
    from unionfs.containers import scratch

    directory = arguments.scratch or scratch.default()
    return scratch.store_in(directory) if directory else arguments.root


def _is_directory(word: str, root: str, further: tuple[str, ...]) -> bool:
    """Whether `word` is a directory, and not an image."""
    if word in (".", "..") or word.startswith(("/", "./", "../")):
        return True
    if not os.path.isdir(word):
        return False
    from layers.store import Store
    from unionfs.containers import images

    return not images.is_known(Store(root, further), word)


def _image_file(word: str, root: str, further: tuple[str, ...]) -> str | None:
    """The path of an image file, if the word is one, and not the name of an image of the store."""
    if not os.path.isfile(word):
        return None
    from layers import image_file
    from layers.store import Store
    from unionfs.containers import images

    if not image_file.is_image(word) and not word.endswith(image_file.ENDINGS):
        return None
    return None if "/" not in word and images.is_known(Store(root, further), word) else word


@contextmanager
def _image(arguments: Namespace, name: str, store: Store) -> Iterator[Unpacked]:
    """Context with the image, in which its layers are not removed from the user's own store."""
    from unionfs.containers import images

    def note(text: str) -> None:
        if not arguments.quiet:
            notes.warn(text)

    with images.failures():
        platform = None
        if arguments.platform:
            from layers.manifest import parse_platform

            platform = parse_platform(arguments.platform)
        shown, remote = functools.partial(_shown, arguments), functools.partial(_remote, arguments)
        fetch = images.Fetch(shown, note, arguments.pull, platform, remote)
        found = images.of_others(store, name, fetch)
    if found is not None:
        yield found
        return
    with store.using():
        yield images.unpacked(store, name, fetch)


def _shown(arguments: Namespace) -> AbstractContextManager[Progress]:
    from unionfs.cli.progress import shown

    return shown(quiet=arguments.quiet)


def _remote(arguments: Namespace) -> Remote:
    from unionfs.cli import image_flags

    return image_flags.remote(arguments)


def _config_on_directories(arguments: Namespace, words: list[str]) -> ContainerConfig:
    """Raises: CommandError without a command, and for invalid flags."""
    lowers = arguments.lower or words[:1]
    entrypoint = (arguments.entrypoint,) if arguments.entrypoint else ()
    command = (*entrypoint, *(words if arguments.lower else words[1:]))
    if not command:
        hint = f"for a shell: unionfs run -it {lowers[0]} sh" if not arguments.lower else "see unionfs run --help"
        raise CommandError("run: no command given", hint=hint)
    config = container_flags.config_of(arguments)
    return config._replace(
        process=config.process._replace(command=command),
        rootfs=config.rootfs._replace(lowers=tuple(map(os.path.abspath, lowers))),
        entrypoint=entrypoint,
    )


def _config_on_image(
    config: ContainerConfig, arguments: Namespace, words: list[str], image: Unpacked | FromFile, root: str
) -> ContainerConfig:
    """Fill in the image's settings that the command line does not set. Raises: CommandError."""
    from unionfs.containers import images

    settings, process, mounts = image.settings, config.process, config.mounts
    # No process changes layers of our own store while a container uses them.
    is_ours = isinstance(image, images.Unpacked) and image.store == root
    entrypoint, rest = images.command_of(settings, arguments.entrypoint, words[1:])
    if arguments.entrypoint == "" and image.without_entrypoint:
        entrypoint = image.without_entrypoint
    if not (*entrypoint, *rest):
        hint = f"for a shell: unionfs run -it {image.name} sh"
        raise CommandError(f"run: no command given, and the image {image.name} has none", hint=hint)
    return config._replace(
        process=process._replace(
            command=(*entrypoint, *rest),
            environment=images.environment_of(settings, process.environment),
            user=process.user or settings.user,
            workdir=process.workdir if arguments.workdir else "/" + settings.working_dir.lstrip("/"),
        ),
        rootfs=config.rootfs._replace(
            lowers=image.lowers,
            file=image.file,
            partial_from=container_flags.partial_from(arguments, by_default=PARTIAL_FROM if is_ours else 0),
        ),
        mounts=mounts._replace(anonymous=(*mounts.anonymous, *images.volumes_of(settings, _targets(mounts)))),
        image=image.facts(root),
        entrypoint=entrypoint,
        stop_signal=arguments.stop_signal or settings.stop_signal or "SIGTERM",
        labels=tuple({**settings.labels, **dict(config.labels)}.items()),
    )


def _targets(mounts: Mounts) -> list[str]:
    volumes = (volume.target for volume in mounts.volumes)
    return [*volumes, *(tmpfs.target for tmpfs in mounts.tmpfs), *mounts.anonymous]
