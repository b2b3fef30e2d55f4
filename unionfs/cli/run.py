"""`unionfs run`: a command in a container whose root filesystem is a union; its exit code is ours."""

from __future__ import annotations

import argparse
import os
from argparse import Namespace
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from unionfs.cli import mount_flags, network_flags, signals
from unionfs.cli.arguments import Parser
from unionfs.cli.errors import OWN_FAILURE, CommandError, PullFailedError, failed
from unionfs.containers import start
from unionfs.containers.job import Job
from unionfs.containers.record import Container
from unionfs.containers.store import ContainerStore
from unionfs.core.options import DURABILITIES, WHITEOUT_FORMATS
from unionfs.daemon import DEFAULT_TRANSPORT, TRANSPORTS
from unionfs.drivers.driver import DEFAULT, NAMES
from unionfs.launcher import channel, resources
from unionfs.launcher.capabilities import chosen
from unionfs.launcher.channel import FAILED, STARTED, Sender
from unionfs.launcher.errors import LaunchError
from unionfs.launcher.spec import PASTA, SLIRP, Port

if TYPE_CHECKING:
    from layers.store import Store
    from unionfs.containers.image_settings import Ready

_DESCRIPTION: Final = """\
Run COMMAND in a container. Its root filesystem is ROOTFS: an image, which is pulled if it is not here; a directory, or
/ for this machine itself; or the union of the directories given with --lower, the topmost first, and then all
arguments are the command. A word without a slash in front is an image's name if there is such an image, else the
directory of that name in the current one, else an image to be pulled. All of them stay as they are: what the command
changes goes to a directory of the container, see `unionfs diff NAME` and `unionfs commit NAME IMAGE`.

The image's settings hold (ENTRYPOINT, CMD, ENV, USER, WORKDIR, VOLUME, STOPSIGNAL) where the flags say nothing else.

No root is needed. Root in the container is you outside; other ids are your subordinate ids (/etc/subuid)."""

_EPILOG: Final = """\
examples:
  unionfs run -it --name box debian:12                 a shell in an image
  unionfs run -d --name web -e PORT=80 user/web:v0.1   in the background: unionfs logs web, unionfs stop web
  unionfs run --rm -it / bash                          a shell on a copy-on-write view of this machine
  unionfs run --name web --lower app --lower debian python3 /srv/app.py
  unionfs run --rm -v .:/src -w /src debian make

exit codes: the command's own, 128+N if signal N killed it, 125 if unionfs failed, 126 if the command cannot be
executed, 127 if it was not found."""


def main(argv: list[str]) -> int:
    """Run `unionfs run ARGV`. Whatever fails on our side, the command line included, has exit code 125 or above."""
    try:
        arguments = parser("run", _DESCRIPTION, _EPILOG).parse(argv)
        store = ContainerStore(arguments.root)
        made = make(arguments, store)
        if made is None:
            return 0
        job, container = made
        if arguments.detach:
            return detached(lambda ready: start.run(job, store, container, ready, attached=False), container)
        return start.run(job, store, container)
    except PullFailedError:
        return OWN_FAILURE
    except CommandError as error:
        error.status = max(error.status, OWN_FAILURE)
        raise


def make(arguments: Namespace, store: ContainerStore) -> tuple[Job, Container] | None:
    """The container that the command line asks for; None when that was only to be described.

    Raises: CommandError, PullFailedError.
    """
    words = list(arguments.words)
    if words[:1] == ["--"]:
        del words[0]
    if not arguments.lower and not words:
        raise CommandError("run: no root filesystem given", hint="see unionfs run --help", status=OWN_FAILURE)
    if arguments.lower or _is_directory(words[0], store.root):
        return _made(_job_on_directories(arguments, words), arguments, store)
    from layers.store import Store

    images = Store(store.root)
    job = _check(arguments, words)
    with images.using():
        job = _job_on_image(job, arguments, words, _image(arguments, words[0], images))
        return _made(job, arguments, store)


def _made(job: Job, arguments: Namespace, store: ContainerStore) -> tuple[Job, Container] | None:
    if arguments.dry_run:
        print("\n".join(start.describe(job, store)))
        return None
    return job, start.create(job, store)


def _is_directory(word: str, root: str) -> bool:
    """Whether a root filesystem is meant, and not an image."""
    if word in (".", "..") or word.startswith(("/", "./", "../")):
        return True
    if not os.path.isdir(word):
        return False
    from layers.store import Store
    from unionfs.containers import image_settings

    return not image_settings.is_known(Store(root), word)


def _image(arguments: Namespace, name: str, images: Store) -> Ready:
    from layers.manifest import parse_platform
    from unionfs.cli import image_store
    from unionfs.containers import image_settings

    with image_store.failures():
        fetch = image_settings.Fetch(
            arguments.pull,
            parse_platform(arguments.platform) if arguments.platform else None,
            image_store.remote(arguments),
            arguments.quiet,
        )
    return image_settings.ready(images, name, fetch)


def _job_on_directories(arguments: Namespace, words: list[str]) -> Job:
    """Raises: CommandError when it makes no sense."""
    lowers = arguments.lower or words[:1]
    entrypoint = (arguments.entrypoint,) if arguments.entrypoint else ()
    command = (*entrypoint, *(words if arguments.lower else words[1:]))
    if not command:
        hint = f"for a shell: unionfs run -it {lowers[0]} sh" if not arguments.lower else "see unionfs run --help"
        raise CommandError("run: no command given", hint=hint, status=OWN_FAILURE)
    wished = _check(arguments, words)
    return replace(wished, lowers=tuple(map(os.path.abspath, lowers)), command=command, entrypoint=entrypoint)


def _job_on_image(job: Job, arguments: Namespace, words: list[str], image: Ready) -> Job:
    """The image's settings where the command line leaves room for them. Raises: CommandError."""
    from unionfs.containers import image_settings

    settings = image.settings
    entrypoint, rest = image_settings.command_of(settings, arguments.entrypoint, words[1:])
    if not (*entrypoint, *rest):
        hint = f"for a shell: unionfs run -it {image.name} sh"
        raise CommandError(f"run: no command given, and the image {image.name} has none", hint=hint, status=OWN_FAILURE)
    return replace(
        job,
        lowers=image.lowers,
        command=(*entrypoint, *rest),
        entrypoint=entrypoint,
        environment=image_settings.environment_of(settings, job.environment),
        user=job.user or settings.user,
        workdir=job.workdir if arguments.workdir else "/" + settings.working_dir.lstrip("/"),
        anonymous=(
            *job.anonymous,
            *image_settings.volumes_of(
                settings, (*(volume.target for volume in job.volumes), *job.tmpfs, *job.anonymous)
            ),
        ),
        stop_signal=arguments.stop_signal or settings.stop_signal or "SIGTERM",
        labels=tuple({**settings.labels, **dict(job.labels)}.items()),
        ports=settings.exposed_ports,
        image=image.name,
        image_digest=image.descriptor.digest,
        image_type=image.descriptor.media_type,
    )


def _check(arguments: Namespace, words: list[str]) -> Job:
    """What the flags ask for, on no root filesystem yet. Raises: CommandError when it makes no sense."""
    if arguments.stop_signal:
        signals.number_of(arguments.stop_signal)
    mounted = mount_flags.wanted(arguments)
    return Job(
        lowers=(),
        command=tuple(words),
        environment=environment(arguments),
        name=arguments.name,
        hostname=_hostname(arguments.hostname),
        user=arguments.user,
        workdir=mount_flags.inside("working directory", arguments.workdir or "/"),
        volumes=mounted.volumes,
        anonymous=mounted.anonymous,
        stop_signal=arguments.stop_signal or "SIGTERM",
        labels=tuple((label.partition("=")[0], label.partition("=")[2]) for label in arguments.label or ()),
        logged=arguments.detach or not (arguments.rm or arguments.log_driver == "none"),
        tmpfs=mounted.tmpfs,
        tmpfs_options=mounted.tmpfs_options,
        own_network=arguments.network != "host",
        uplink=arguments.network if arguments.network not in ("host", "none") else "",
        published=_published(arguments),
        hosts=tuple(map(network_flags.host_from, arguments.add_host or ())),
        nameservers=tuple(map(network_flags.nameserver_from, arguments.dns or ())),
        read_only=arguments.read_only,
        interactive=arguments.interactive,
        terminal=arguments.tty,
        capabilities=_capabilities(arguments.cap_add or (), arguments.cap_drop or ()),
        no_new_privileges=not arguments.allow_new_privileges,
        limits=tuple(map(_limit, arguments.ulimit or ())),
        remove=arguments.rm,
        driver=arguments.driver,
        runtime=_runtime(arguments.runtime),
        transport=arguments.transport,
        whiteout=arguments.whiteout,
        durability=arguments.durability,
        debug=arguments.debug,
    )


def parser(verb: str, description: str, epilog: str) -> Parser:
    """The flags of the verbs that make containers."""
    made = Parser(verb, description, epilog)
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
    add("-d", "--detach", action="store_true", help="return when the command runs, and print the container's id")
    add("--rm", action="store_true", help="remove the container, and what it changed, when the command ends")
    add("--name", help="the container's name (default: a new one)")
    add(
        "-v",
        "--volume",
        metavar="SRC:DST[:ro|:O]",
        action="append",
        help="show SRC of this machine, or the volume of that name, at DST; ro: read-only; O: what the command changes "
        "there is thrown away; without SRC a volume of the container alone",
    )
    add(
        "--mount",
        metavar="KEY=VALUE,...",
        action="append",
        help="the same, as type=bind|volume|tmpfs,src=,dst=,readonly",
    )
    add(
        "--tmpfs",
        metavar="DIR[:OPTIONS]",
        action="append",
        help="mount an empty directory in memory at DIR; size=64m, mode=700",
    )
    add("--init", action="store_true", help="have a process 1 that reaps and passes on signals: there always is one")
    add(
        "-e",
        "--env",
        metavar="NAME[=VALUE]",
        action="append",
        help="set a variable; without =, pass it on if it is set",
    )
    add("--env-file", metavar="FILE", action="append", help="such variables, one on a line; # begins a comment")
    add("-w", "--workdir", metavar="DIR", help="where the command starts; made if missing (default: the image's, or /)")
    add(
        "-u",
        "--user",
        metavar="USER[:GROUP]",
        default="",
        help="names or numbers of the container (default: the image's, or root)",
    )
    add("-l", "--label", metavar="NAME=VALUE", action="append", help="note something with the container")
    add("--hostname", metavar="NAME", help="the machine's name inside (default: the container's id)")
    add(
        "--network",
        choices=("host", "none", "private", PASTA, SLIRP),
        default="host",
        help="this machine's network, none, or a private one with a way out through pasta or slirp4netns, whichever "
        "is installed (default: host)",
    )
    add("--add-host", metavar="NAME:ADDRESS", action="append", help="one more line of the container's /etc/hosts")
    add("--dns", metavar="ADDRESS", action="append", help="ask this name server instead of this machine's")
    add(
        "-p",
        "--publish",
        metavar="[[IP:]PORT:]PORT[/udp]",
        action="append",
        help="lead a port of this machine to one of the container; for --network private",
    )
    add(
        "--read-only", action="store_true", help="no changes but in volumes and in /run, /tmp, /var/tmp, kept in memory"
    )
    add("--entrypoint", metavar="PROGRAM", help="execute PROGRAM with COMMAND as its arguments; empty: none")
    add("--stop-signal", metavar="SIGNAL", help="what `unionfs stop` sends (default: the image's, or SIGTERM)")
    add(
        "--log-driver",
        choices=("json-file", "none"),
        default="json-file",
        help="keep what the command prints, for `unionfs logs`, or not (default: kept unless --rm)",
    )
    add("--pull", choices=("missing", "always", "never"), default="missing", help="fetch the image (default: missing)")
    add("--platform", metavar="OS/ARCH[/VARIANT]", help="of an image for several (default: this machine's)")
    add("-q", "--quiet", action="store_true", help="show no progress of a pull")
    add("--cap-add", metavar="CAP", action="append", help="a capability to have besides the usual ones, or ALL")
    add("--cap-drop", metavar="CAP", action="append", help="a capability not to have, or ALL")
    add("--ulimit", metavar="NAME=SOFT[:HARD]", action="append", help="limit a resource, as nofile=1024:4096; -1: none")
    add("--allow-new-privileges", action="store_true", help="let set-user-id programs such as sudo have their effect")
    add(
        "--driver",
        choices=NAMES,
        default=DEFAULT,
        help="how the root filesystem comes about: fuse, our union; overlay, the kernel's; vfs, a copy; btrfs, a "
        f"snapshot (default: {DEFAULT})",
    )
    add(
        "--runtime",
        metavar="PROGRAM",
        default="",
        help="have an OCI runtime make the container, crun or runc (default: unionfs itself)",
    )
    add("--transport", choices=tuple(TRANSPORTS), default=DEFAULT_TRANSPORT, help=f"default: {DEFAULT_TRANSPORT}")
    add("--whiteout", choices=WHITEOUT_FORMATS, default="aufs", help="how removed names are marked (default: aufs)")
    add(
        "--durability",
        choices=DURABILITIES,
        default="normal",
        help="strict: a copied-up file is on the device before it shows; volatile: fsync does nothing "
        "(default: normal)",
    )
    add("--root", metavar="DIR", help="where containers are kept (default: $XDG_DATA_HOME/unionfs)")
    add("--dry-run", action="store_true", help="only print what would be done")
    add("--debug", action="store_true", help="log everything to the container's daemon.log; show tracebacks")
    _add_remote(made)
    return made


def _add_remote(made: Parser) -> None:
    """Those of `unionfs pull`, without importing what only pulling needs."""
    from unionfs.cli import image_store

    image_store.add_remote(made)


def environment(arguments: Namespace) -> tuple[tuple[str, str], ...]:
    lines: list[str] = []
    for path in arguments.env_file or ():
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                lines += [line for line in map(str.strip, file) if line and not line.startswith("#")]
        except OSError as error:
            raise CommandError.of("reading variables", error, status=OWN_FAILURE) from error
    return tuple(entry for entry in map(_environment_entry, (*lines, *(arguments.env or ()))) if entry)


def _environment_entry(text: str) -> tuple[str, str] | None:
    name, equals, value = text.partition("=")
    if not name:
        raise mount_flags.bad("environment variable", text, "it has no name")
    if equals:
        return name, value
    return (name, os.environ[name]) if name in os.environ else None


def _hostname(name: str | None) -> str | None:
    if name is not None and not 0 < len(os.fsencode(name)) <= 64:
        raise mount_flags.bad("hostname", name, "it must have 1 to 64 bytes")
    return name


def _runtime(name: str) -> str:
    if name in ("", "unionfs"):
        return ""
    import shutil

    found = shutil.which(name)
    if found is None:
        hint = f"install the package {name}" if name in ("crun", "runc") else "crun and runc are such"
        raise CommandError(f"run: no such runtime: {name}", hint=hint, status=OWN_FAILURE)
    return os.path.abspath(found)


def _published(arguments: Namespace) -> tuple[Port, ...]:
    if not arguments.publish:
        return ()
    if arguments.network in ("host", "none"):
        why = (
            "a container on this machine's network has its ports already"
            if arguments.network == "host"
            else "no network"
        )
        raise CommandError(f"run: --publish makes no sense: {why}", hint="--network private", status=OWN_FAILURE)
    return tuple(map(network_flags.port_from, arguments.publish))


def _capabilities(added: Iterable[str], dropped: Iterable[str]) -> tuple[str, ...]:
    try:
        return chosen(added, dropped)
    except KeyError as error:
        raise mount_flags.bad("capability", str(error.args[0]), "there is no such capability") from None


def _limit(text: str) -> resources.Limit:
    try:
        return resources.parse(text)
    except ValueError as error:
        raise mount_flags.bad("limit", text, str(error)) from None


def detached(
    run: Callable[[Callable[[], None]], int], container: Container, said: str | None = None, kept: tuple[int, ...] = ()
) -> int:
    """Call `run` in a process of its own; return when the command has been executed, or it turned out that it cannot
    be. `run` is given what to call then. The container's id is printed, or `said`. All
    descriptors but `kept` are closed."""
    receiver, sender = channel.make()
    if os.fork() == 0:
        receiver.close()
        _be_detached(run, container, sender, kept)
    sender.close()
    message = receiver.wait()
    if message is None:
        raise CommandError(failed("running the container", container.name, "its process ended unexpectedly"))
    if message.kind == FAILED:
        sentence, hint, status = message.fields
        raise CommandError(sentence, hint=hint, status=int(status))
    if told := container.id if said is None else said:
        print(told)
    return 0


def _be_detached(
    run: Callable[[Callable[[], None]], int], container: Container, sender: Sender, kept: tuple[int, ...]
) -> None:
    """The life of the process that stays. Never returns."""
    status = OWN_FAILURE
    try:
        os.setsid()
        _redirect(os.path.join(container.directory, start.LOG), {sender.fileno(), *kept})
        status = run(lambda: sender.send(STARTED))
    except CommandError as error:
        sender.send(FAILED, str(error), error.hint, str(error.status))
    except LaunchError as error:
        sender.send(FAILED, str(error), error.hint, str(error.status))
    finally:
        os._exit(status)


def _redirect(log: str, kept: set[int]) -> None:
    """Standard output and error to `log`, input from nowhere, and nothing else left open of whoever started us."""
    null_fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    log_fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(null_fd, 0)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > 2 and fd not in kept:
            with suppress(OSError):
                os.close(fd)
