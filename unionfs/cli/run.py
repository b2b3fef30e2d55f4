"""`unionfs run`: a command in a container whose root filesystem is a union; its exit code is ours."""

from __future__ import annotations

import argparse
import os
from argparse import Namespace
from collections.abc import Iterable
from typing import Final

from unionfs.cli import launching
from unionfs.cli.arguments import Parser
from unionfs.cli.containers import Container, ContainerStore
from unionfs.cli.errors import OWN_FAILURE, CommandError, failed
from unionfs.cli.job import Job, Volume
from unionfs.core.options import DURABILITIES, WHITEOUT_FORMATS
from unionfs.daemon import DEFAULT_TRANSPORT, TRANSPORTS
from unionfs.launcher import channel
from unionfs.launcher.capabilities import chosen
from unionfs.launcher.channel import FAILED, STARTED, Sender

_DESCRIPTION: Final = """\
Run COMMAND in a container. Its root filesystem is ROOTFS, a directory or / (this machine itself), or the union of the
directories given with --lower, the topmost first; then all arguments are the command. The directories stay as they are:
what the command changes goes to a directory of the container, see `unionfs diff NAME`.

No root is needed. Root in the container is you outside; other ids are your subordinate ids (/etc/subuid)."""

_EPILOG: Final = """\
examples:
  unionfs run --rm -it / bash                          a shell on a copy-on-write view of this machine
  unionfs run --name web --lower app --lower debian python3 /srv/app.py
  unionfs run --rm -v .:/src -w /src debian make

exit codes: the command's own, 128+N if signal N killed it, 125 if unionfs failed, 126 if the command cannot be
executed, 127 if it was not found."""

_VOLUME_WORDS: Final = ("ro", "rw", "O", "z", "Z")  # z and Z relabel for SELinux in other tools: nothing to do here


def main(argv: list[str]) -> int:
    """Run `unionfs run ARGV`. Whatever fails on our side, the command line included, has exit code 125 or above."""
    try:
        arguments = _parser().parse(argv)
        job = job_of(arguments)
        store = ContainerStore(arguments.root)
        if arguments.dry_run:
            print("\n".join(launching.describe(job, store)))
            return 0
        container = launching.create(job, store)
        if arguments.detach:
            return _run_detached(job, store, container)
        return launching.run(job, store, container)
    except CommandError as error:
        error.status = max(error.status, OWN_FAILURE)
        raise


def job_of(arguments: Namespace) -> Job:
    """What the command line asks for. Raises: CommandError when it makes no sense."""
    words = list(arguments.words)
    if words[:1] == ["--"]:
        del words[0]
    lowers = arguments.lower or words[:1]
    command = words if arguments.lower else words[1:]
    if arguments.entrypoint:
        command = [arguments.entrypoint, *command]
    if not lowers:
        raise CommandError("run: no root filesystem given", hint="see unionfs run --help", status=OWN_FAILURE)
    if not command:
        hint = f"for a shell: unionfs run -it {lowers[0]} sh" if not arguments.lower else "see unionfs run --help"
        raise CommandError("run: no command given", hint=hint, status=OWN_FAILURE)
    return Job(
        lowers=tuple(map(os.path.abspath, lowers)),
        command=tuple(command),
        environment=tuple(entry for entry in map(_environment_entry, arguments.env or ()) if entry),
        name=arguments.name,
        hostname=_hostname(arguments.hostname),
        user=arguments.user,
        workdir=_inside("working directory", arguments.workdir),
        volumes=tuple(map(volume_from, arguments.volume or ())),
        tmpfs=tuple(_inside("tmpfs", path) for path in arguments.tmpfs or ()),
        own_network=arguments.network == "none",
        read_only=arguments.read_only,
        interactive=arguments.interactive,
        terminal=arguments.tty,
        capabilities=_capabilities(arguments.cap_add or (), arguments.cap_drop or ()),
        no_new_privileges=not arguments.allow_new_privileges,
        remove=arguments.rm,
        transport=arguments.transport,
        whiteout=arguments.whiteout,
        durability=arguments.durability,
        debug=arguments.debug,
    )


def _parser() -> Parser:
    parser = Parser("run", _DESCRIPTION, _EPILOG)
    parser.usage = (
        "unionfs run [OPTIONS] ROOTFS COMMAND [ARG...]\n       unionfs run [OPTIONS] --lower DIR... COMMAND [ARG...]"
    )
    add = parser.add_argument
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
        help="show SRC of this machine at DST; ro: read-only; O: what the command changes there is thrown away",
    )
    add("--tmpfs", metavar="DIR", action="append", help="mount an empty directory in memory at DIR")
    add(
        "-e",
        "--env",
        metavar="NAME[=VALUE]",
        action="append",
        help="set a variable; without =, pass it on if it is set",
    )
    add("-w", "--workdir", metavar="DIR", default="/", help="where the command starts; made if missing (default: /)")
    add("-u", "--user", metavar="USER[:GROUP]", default="", help="names or numbers of the container (default: root)")
    add("--hostname", metavar="NAME", help="the machine's name inside (default: the container's id)")
    add("--network", choices=("host", "none"), default="host", help="this machine's network, or none (default: host)")
    add(
        "--read-only", action="store_true", help="no changes but in volumes and in /run, /tmp, /var/tmp, kept in memory"
    )
    add("--entrypoint", metavar="PROGRAM", help="execute PROGRAM with COMMAND as its arguments")
    add("--cap-add", metavar="CAP", action="append", help="a capability to have besides the usual ones, or ALL")
    add("--cap-drop", metavar="CAP", action="append", help="a capability not to have, or ALL")
    add("--allow-new-privileges", action="store_true", help="let set-user-id programs such as sudo have their effect")
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
    return parser


def volume_from(text: str) -> Volume:
    """What a value of -v asks for. Raises: CommandError when it makes no sense."""
    source, _, rest = text.partition(":")
    target, _, words = rest.partition(":")
    if not source or not target:
        raise _bad("volume", text, "expected SRC:DST or SRC:DST:ro or SRC:DST:O")
    chosen_words = words.split(",") if words else []
    for word in chosen_words:
        if word not in _VOLUME_WORDS:
            raise _bad("volume", text, f"{word!r} is none of {', '.join(_VOLUME_WORDS)}")
    place = _inside("volume", target)
    if place == "/":
        raise _bad("volume", text, "it would cover the whole root filesystem")
    return Volume(os.path.abspath(os.path.expanduser(source)), place, "ro" in chosen_words, "O" in chosen_words)


def _inside(what: str, path: str) -> str:
    """A path of the container, made normal."""
    if not path.startswith("/"):
        raise _bad(what, path, "a path in the container must be absolute")
    return "/" + os.path.normpath(path).lstrip("/")


def _environment_entry(text: str) -> tuple[str, str] | None:
    name, equals, value = text.partition("=")
    if not name:
        raise _bad("environment variable", text, "it has no name")
    if equals:
        return name, value
    return (name, os.environ[name]) if name in os.environ else None


def _hostname(name: str | None) -> str | None:
    if name is not None and not 0 < len(os.fsencode(name)) <= 64:
        raise _bad("hostname", name, "it must have 1 to 64 bytes")
    return name


def _capabilities(added: Iterable[str], dropped: Iterable[str]) -> tuple[str, ...]:
    try:
        return chosen(added, dropped)
    except KeyError as error:
        raise _bad("capability", str(error.args[0]), "there is no such capability") from None


def _bad(what: str, text: str, why: str) -> CommandError:
    return CommandError(f"run: bad {what}: {text}: {why}", status=OWN_FAILURE)


def _run_detached(job: Job, store: ContainerStore, container: Container) -> int:
    """Run in a process of its own; return when the command has been executed, or it turned out that it cannot be."""
    receiver, sender = channel.make()
    if os.fork() == 0:
        receiver.close()
        _be_detached(job, store, container, sender)
    sender.close()
    message = receiver.wait()
    if message is None:
        raise CommandError(failed("running the container", container.name, "its process ended unexpectedly"))
    if message.kind == FAILED:
        sentence, hint, status = message.fields
        raise CommandError(sentence, hint=hint, status=int(status))
    print(container.id)
    return 0


def _be_detached(job: Job, store: ContainerStore, container: Container, sender: Sender) -> None:
    """The life of the process that stays. Never returns."""
    status = OWN_FAILURE
    try:
        os.setsid()
        _redirect(os.path.join(container.directory, "log"), sender.fileno())
        status = launching.run(job, store, container, lambda: sender.send(STARTED))
    except CommandError as error:
        sender.send(FAILED, str(error), error.hint, str(error.status))
    finally:
        os._exit(status)


def _redirect(log: str, kept_fd: int) -> None:
    """Standard output and error to `log`, input from nowhere, and nothing else left open of whoever started us."""
    null_fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    log_fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(null_fd, 0)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    os.closerange(3, kept_fd)
    os.closerange(kept_fd + 1, os.sysconf("SC_OPEN_MAX"))
