"""`unionfs run`: run a command in a container whose root filesystem is a union, and return its exit code."""

from __future__ import annotations

import argparse
import functools
import os
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from unionfs import store_files
from unionfs.cli import (
    as_me_flags,
    device_flags,
    mount_flags,
    network_flags,
    notes,
    parents,
    remote_flags,
    signals,
    store_flags,
)
from unionfs.cli.arguments import Parser
from unionfs.cli.errors import CommandError
from unionfs.cli.partial_flags import add_partial_from
from unionfs.containers import background, create, start
from unionfs.containers.config import ContainerConfig, Mounts, RootFilesystem
from unionfs.containers.record import Container
from unionfs.containers.store import ContainerStore
from unionfs.core.options import DURABILITIES, PARTIAL_FROM, WHITEOUT_FORMATS
from unionfs.drivers.driver import DEFAULT, NAMES, DriverError
from unionfs.fuse.options import DEFAULT_TRANSPORT, TRANSPORTS
from unionfs.launcher import resources
from unionfs.launcher.capabilities import chosen
from unionfs.launcher.spec import PASTA, SLIRP, Process

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
    arguments = parser("run", _DESCRIPTION, _EPILOG).parse(argv)
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
    """The container that the command line asks for, made; None when it was only to be described.

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

        config = _config(arguments)
        config = _config_on_image(config, arguments, words, image_mount.read(path), store.root)
        config = as_me_flags.apply(config, arguments)
        return make_or_describe(store, config, name, dry_run=arguments.dry_run)
    if arguments.lower or _is_directory(words[0], images_root, further):
        config = as_me_flags.apply(_config_on_directories(arguments, words), arguments)
        return make_or_describe(store, config, name, dry_run=arguments.dry_run)
    from layers.store import Store

    config = _config(arguments)  # invalid flags are reported before anything is pulled
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
    config = _config(arguments)
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
    is_ours = (
        isinstance(image, images.Unpacked) and image.store == root
    )  # nobody changes its layers while the container exists
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
            partial_from=_partial_from(arguments, by_default=PARTIAL_FROM if is_ours else 0),
        ),
        mounts=mounts._replace(anonymous=(*mounts.anonymous, *images.volumes_of(settings, _targets(mounts)))),
        image=image.facts(root),
        entrypoint=entrypoint,
        stop_signal=arguments.stop_signal or settings.stop_signal or "SIGTERM",
        labels=tuple({**settings.labels, **dict(config.labels)}.items()),
    )


def _partial_from(arguments: Namespace, *, by_default: int) -> int:
    asked: int | None = arguments.partial_from
    return by_default if asked is None else asked


def _targets(mounts: Mounts) -> list[str]:
    volumes = (volume.target for volume in mounts.volumes)
    return [*volumes, *(tmpfs.target for tmpfs in mounts.tmpfs), *mounts.anonymous]


def _config(arguments: Namespace) -> ContainerConfig:
    """The configuration of the flags, still without a root filesystem and a command.

    Raises: CommandError for invalid flags.
    """
    if arguments.stop_signal:
        signals.number_of(arguments.stop_signal)
    return ContainerConfig(
        process=Process(
            command=(),
            environment=environment(arguments),
            user=arguments.user,
            workdir=mount_flags.inside("working directory", arguments.workdir or "/"),
            interactive=arguments.interactive,
            terminal=arguments.tty,
            capabilities=_capabilities(arguments.cap_add or (), arguments.cap_drop or ()),
            no_new_privileges=not arguments.allow_new_privileges,
            limits=tuple(map(_limit, arguments.ulimit or ())),
        ),
        rootfs=RootFilesystem(
            lowers=(),
            driver=arguments.driver,
            read_only=arguments.read_only,
            transport=arguments.transport,
            whiteout=arguments.whiteout,
            durability=arguments.durability,
            passthrough=_passthrough(arguments),
            keeper=not arguments.no_keeper,
            partial_from=_partial_from(arguments, by_default=0),
        ),
        mounts=mount_flags.mounts_of(arguments),
        devices=device_flags.devices_of(arguments),
        network=network_flags.network_of(arguments),
        hostname=_hostname(arguments.hostname),
        stop_signal=arguments.stop_signal or "SIGTERM",
        labels=tuple((label.partition("=")[0], label.partition("=")[2]) for label in arguments.label or ()),
        runtime=_runtime(arguments.runtime),
        logged=arguments.detach or not (arguments.rm or arguments.log_driver == "none"),
        remove=arguments.rm,
    )


def parser(verb: str, description: str, epilog: str) -> Parser:
    """The flags of the verbs that make containers."""
    made = Parser(verb, description, epilog, short_help=False)  # -h is docker's hostname
    made.usage = (
        f"unionfs {verb} [OPTIONS] IMAGE [COMMAND [ARG...]]\n"
        f"       unionfs {verb} [OPTIONS] DIRECTORY|/ COMMAND [ARG...]\n"
        f"       unionfs {verb} [OPTIONS] --lower DIR... COMMAND [ARG...]"
    )
    add = made.add_argument
    add("words", metavar="ROOTFS COMMAND", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    add("--lower", metavar="DIR", action="append", help="a directory of the root filesystem; repeat it, topmost first")
    add("-i", "--interactive", action="store_true", help="let the command read standard input")
    add("-t", "--tty", action="store_true", help="give the command a terminal")
    add("-d", "--detach", action="store_true", help="return when the command has started, and print the container's id")
    add("--rm", action="store_true", help="remove the container and its changes when the command ends")
    add("--name", help="the container's name (default: a random one)")
    add(
        "-v",
        "--volume",
        metavar="SRC:DST[:ro|:O]",
        action="append",
        help="show SRC of this machine, or the volume of that name, at DST; ro: read-only; O: the command's changes "
        "of it are discarded; without SRC an anonymous volume",
    )
    add(
        "--mount",
        metavar="KEY=VALUE,...",
        action="append",
        help="the same as type=bind|volume|tmpfs,src=,dst=,readonly",
    )
    add(
        "--tmpfs",
        metavar="DIR[:OPTIONS]",
        action="append",
        help="mount a tmpfs at DIR; size=64m, mode=700",
    )
    add("--init", action="store_true", help="no effect: process 1 always reaps and forwards signals")
    add(
        "-e",
        "--env",
        metavar="NAME[=VALUE]",
        action="append",
        help="set a variable; without =, to its value here, if it is set",
    )
    add("--env-file", metavar="FILE", action="append", help="a file of variables, one on a line; # begins a comment")
    add("-w", "--workdir", metavar="DIR", help="the working directory, made if missing (default: the image's, or /)")
    add(
        "-u",
        "--user",
        metavar="USER[:GROUP]",
        default="",
        help="user and group of the command, by names or numbers of the container (default: the image's, or root)",
    )
    as_me_flags.add(made)
    device_flags.add(made)
    add("-l", "--label", metavar="NAME=VALUE", action="append", help="store a label with the container")
    add("-h", "--hostname", metavar="NAME", help="the hostname in the container (default: its id)")
    add(
        "--network",
        choices=("host", "none", "private", PASTA, SLIRP),
        default="host",
        help="this machine's network, none, or a private one connected through pasta or slirp4netns, whichever "
        "is installed (default: host)",
    )
    add("--add-host", metavar="NAME:ADDRESS", action="append", help="add a line to the container's /etc/hosts")
    add("--dns", metavar="ADDRESS", action="append", help="use this name server instead of this machine's")
    add(
        "-p",
        "--publish",
        metavar="[[IP:]PORT:]PORT[/udp]",
        action="append",
        help="forward a port of this machine to one of the container; needs --network private",
    )
    add(
        "--read-only",
        action="store_true",
        help="allow changes only in volumes, and in /run, /tmp and /var/tmp, which are in memory",
    )
    add("--entrypoint", metavar="PROGRAM", help="execute PROGRAM with COMMAND as its arguments; empty: no entrypoint")
    add("--stop-signal", metavar="SIGNAL", help="the signal of `unionfs stop` (default: the image's, or SIGTERM)")
    add(
        "--log-driver",
        choices=("json-file", "none"),
        default="json-file",
        help="store the command's output for `unionfs logs`, or not (default: stored, except with --rm)",
    )
    add(
        "--pull",
        choices=("missing", "always", "never"),
        default="missing",
        help="when to fetch the image (default: missing)",
    )
    add(
        "--platform",
        metavar="OS/ARCH[/VARIANT]",
        help="which image of several platforms (default: this machine's platform)",
    )
    add("-q", "--quiet", action="store_true", help="show no progress of a pull")
    add("--cap-add", metavar="CAP", action="append", help="add a capability to the default ones, or ALL")
    add("--cap-drop", metavar="CAP", action="append", help="remove a capability, or ALL")
    add(
        "--ulimit",
        metavar="NAME=SOFT[:HARD]",
        action="append",
        help="limit a resource, such as nofile=1024:4096; -1: unlimited",
    )
    add("--allow-new-privileges", action="store_true", help="let set-user-id programs such as sudo have their effect")
    add(
        "--driver",
        choices=NAMES,
        default=DEFAULT,
        help="how the root filesystem is made: fuse, our union; overlay, the kernel's; vfs, a copy; btrfs, a "
        f"snapshot; devicemapper, a snapshot of a block device, for root only (default: {DEFAULT})",
    )
    add(
        "--pool",
        metavar="DEVICE",
        help="the thin pool of all devices of this store with --driver devicemapper, chosen once (default: files in "
        "the store)",
    )
    add(
        "--runtime",
        metavar="PROGRAM",
        default="",
        help="let an OCI runtime run the container, crun or runc (default: unionfs itself)",
    )
    add("--transport", choices=tuple(TRANSPORTS), default=DEFAULT_TRANSPORT, help=f"default: {DEFAULT_TRANSPORT}")
    add("--whiteout", choices=WHITEOUT_FORMATS, default="aufs", help="the format of whiteouts (default: aufs)")
    add(
        "--durability",
        choices=DURABILITIES,
        default="normal",
        help="strict: a copied-up file is written to the device before it is shown; volatile: fsync does nothing "
        "(default: normal)",
    )
    add(
        "--passthrough",
        action="store_true",
        help="let the kernel itself read and write the files of the image (see unionfs mount); for root of the machine",
    )
    add_no_keeper(made)
    # Only verbs that complete it read the upper of a container.
    add_partial_from(made, default=None, by_default="16M for images of the store, otherwise 0")
    add("--root", metavar="DIR", help="the store of containers (default: $XDG_DATA_HOME/unionfs)")
    store_flags.add_image_stores(made)
    add(
        "--scratch",
        metavar="DIR",
        help="keep the container and its changes in DIR/unionfs-UID, and only images in the store; other verbs find it "
        "with --root DIR/unionfs-UID (default: $SLURM_TMPDIR or $TMPDIR in a job of a scheduler)",
    )
    add("--dry-run", action="store_true", help="only print the steps")
    add("--debug", action="store_true", help="log everything to the container's daemon.log; show tracebacks")
    remote_flags.add(made)
    return made


def add_no_keeper(made: Parser) -> None:
    """Add the flag to the parser of a verb that makes containers."""
    made.add_argument(
        "--no-keeper",
        action="store_true",
        help="leave no keeper, which starts another daemon if the union's daemon dies; the container then ends",
    )


def environment(arguments: Namespace) -> tuple[tuple[str, str], ...]:
    """The variables that -e and --env-file set. Raises: CommandError."""
    lines: list[str] = []
    for path in arguments.env_file or ():
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                lines += [line for line in map(str.strip, file) if line and not line.startswith("#")]
        except OSError as error:
            raise CommandError.of("reading variables", error) from error
    return tuple(entry for entry in map(_environment_entry, (*lines, *(arguments.env or ()))) if entry)


def _environment_entry(text: str) -> tuple[str, str] | None:
    name, equals, value = text.partition("=")
    if not name:
        raise mount_flags.bad("environment variable", text, "it has no name")
    if equals:
        return name, value
    return (name, os.environ[name]) if name in os.environ else None


def _hostname(name: str | None) -> str:
    if name is not None and not 0 < len(os.fsencode(name)) <= 64:
        raise mount_flags.bad("hostname", name, "it must have 1 to 64 bytes")
    return name or ""


def _runtime(name: str) -> str:
    if name in ("", "unionfs"):
        return ""
    import shutil

    found = shutil.which(name)
    if found is None:
        hint = f"install the package {name}" if name in ("crun", "runc") else "crun and runc are supported"
        raise CommandError(f"run: no such runtime: {name}", hint=hint)
    return os.path.abspath(found)


def _capabilities(added: Iterable[str], dropped: Iterable[str]) -> tuple[str, ...]:
    try:
        return chosen(added, dropped)
    except KeyError as error:
        raise mount_flags.bad("capability", str(error.args[0]), "there is no such capability") from None


def _passthrough(arguments: Namespace) -> bool:
    """Whether --passthrough is given. Raises: CommandError if the driver is not our own union."""
    if arguments.passthrough and arguments.driver != DEFAULT:
        raise mount_flags.bad("driver", arguments.driver, f"--passthrough is for {DEFAULT}, our own union")
    return bool(arguments.passthrough)


def _limit(text: str) -> resources.Limit:
    try:
        return resources.parse(text)
    except ValueError as error:
        raise mount_flags.bad("limit", text, str(error)) from None
