"""`unionfs try`: run a command on a copy-on-write view of this machine, list the changes; apply, keep or drop them."""

from __future__ import annotations

import argparse
import errno
import json
import os
import socket
import sys
from argparse import Namespace
from typing import Any, Final

from unionfs.changes.listing import Change
from unionfs.cli import apply as applying
from unionfs.cli import output
from unionfs.cli.arguments import Parser
from unionfs.cli.errors import OWN_FAILURE, CommandError, tell
from unionfs.cli.mount_flags import volume_from
from unionfs.containers import diff, start
from unionfs.containers.job import Job
from unionfs.containers.record import Container
from unionfs.containers.store import ContainerStore
from unionfs.containers.volumes import VolumeStore
from unionfs.daemon import DEFAULT_TRANSPORT, TRANSPORTS
from unionfs.launcher.spec import SEARCH_PATH
from unionfs.syscalls import files

_DESCRIPTION: Final = """\
Run COMMAND on a copy-on-write view of this machine: it sees all files, and whatever it writes goes aside. When it has
ended, list what it changed; then put that in place, keep it, or drop it. On a terminal you are asked.

No root is needed, and the command need not know: it is root in its view, so that package managers work. What belongs
to others is shown as root's. Directory, environment, terminal and network are as they are now; the processes of this
machine are neither seen nor reached. Other filesystems than that of / are shown as empty directories unless they are
named with -v; what is written to /run, or to a /tmp that is in memory, is gone in the end."""

_EPILOG: Final = """\
examples:
  unionfs try apt-get install hello          what would that package bring?
  unionfs try --apply make install           put it in place if the command succeeds
  unionfs try --keep new -- ./configure.sh   then: unionfs diff new; unionfs apply new; unionfs rm new

Without a terminal, changes are listed and dropped unless a flag says otherwise: one on a line, as KIND SIZE PATH.
--json prints, as the last line, one object: command, exit_code, changes as `unionfs diff --json` has them, done
(applied, kept, dropped, or nothing), name (of what is kept), and error (why it is not applied).

exit codes: the command's own, 128+N if signal N killed it, 125 if unionfs failed or the changes could not be applied,
126 if the command cannot be executed, 127 if it was not found."""

_ROWS: Final = 100
"""More changes than these are counted only, unless asked for: what was said before them should stay in view."""

_PROVIDED: Final = ("/dev", "/proc", "/sys", "/run")
"""What the launcher makes anew: no use in showing the machine's own."""

_QUESTION: Final = "[a]pply to this machine, [k]eep for later, [d]rop, or [l]ist all? "


def main(argv: list[str]) -> int:
    """Run `unionfs try ARGV`. Whatever fails on our side, the command line included, has exit code 125 or above."""
    try:
        arguments = _parser().parse(argv)
        job = job_of(arguments)
        store = ContainerStore(arguments.root)
        if arguments.dry_run:
            print("\n".join(start.describe(job, store)))
            return 0
        return _try(job, store, arguments)
    except CommandError as error:
        error.status = max(error.status, OWN_FAILURE)
        raise


def _parser() -> Parser:
    parser = Parser("try", _DESCRIPTION, _EPILOG)
    parser.usage = "unionfs try [OPTIONS] COMMAND [ARG...]"
    add = parser.add_argument
    add("words", metavar="COMMAND", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    then = parser.add_mutually_exclusive_group()
    then.add_argument("--apply", action="store_true", help="put the changes in place if the command succeeds")
    then.add_argument("--keep", metavar="NAME", help="keep the changes as NAME, for unionfs diff, apply and rm")
    then.add_argument("--discard", action="store_true", help="drop the changes (the default without a terminal)")
    add("--force", action="store_true", help="with --apply: replace even what was changed on this machine meanwhile")
    add("--json", action="store_true", help="list the changes as JSON")
    add(
        "-v",
        "--volume",
        metavar="SRC:DST[:ro|:O]",
        action="append",
        help="show SRC of this machine at DST, unprotected; ro: read-only; O: what is changed there is thrown away",
    )
    add("-w", "--workdir", metavar="DIR", help="where the command starts (default: here)")
    add("--network", choices=("host", "none"), default="host", help="this machine's network, or none (default: host)")
    add("--transport", choices=tuple(TRANSPORTS), default=DEFAULT_TRANSPORT, help=f"default: {DEFAULT_TRANSPORT}")
    add("--root", metavar="DIR", help="where containers are kept (default: $XDG_DATA_HOME/unionfs)")
    add("--dry-run", action="store_true", help="only print what would be done")
    add("--debug", action="store_true", help="log everything to the container's daemon.log; show tracebacks")
    return parser


def job_of(arguments: Namespace) -> Job:
    """What the command line asks for. Raises: CommandError when it makes no sense."""
    words = list(arguments.words)
    if words[:1] == ["--"]:
        del words[0]
    if not words:
        raise CommandError("try: no command given", hint="for a shell: unionfs try bash", status=OWN_FAILURE)
    store = VolumeStore(ContainerStore(arguments.root).root)
    volumes = tuple(volume_from(text, store) for text in arguments.volume or ())
    workdir = _working_directory(arguments.workdir)
    if not any(workdir == volume.target or workdir.startswith(volume.target + "/") for volume in volumes):
        _must_be_in_view(workdir)
    environment = dict(os.environ)
    environment["PATH"] = _with_system_programs(environment.get("PATH", ""))
    return Job(
        lowers=("/",),
        command=tuple(words),
        environment=tuple(environment.items()),
        kind="try",
        name=arguments.keep,
        hostname=socket.gethostname(),
        workdir=workdir,
        volumes=volumes,
        own_network=arguments.network == "none",
        interactive=True,
        terminal=os.isatty(0) and os.isatty(1),
        transport=arguments.transport,
        debug=arguments.debug,
    )


def _working_directory(asked: str | None) -> str:
    try:
        return os.path.realpath(asked, strict=True) if asked else os.getcwd()
    except OSError as error:
        raise CommandError.of("try: the working directory", error, hint="choose one with -w DIR") from error


def _must_be_in_view(directory: str) -> None:
    """Raises: CommandError if the command would find an empty directory in this place."""
    root_fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        device = os.fstat(root_fd).st_dev
        place = ""
        for name in directory.split("/")[1:]:
            place = f"{place}/{name}"
            if os.stat(place).st_dev == device:
                continue
            try:
                fd = files.openat2(root_fd, os.fsencode(place[1:]), os.O_PATH, files.RESOLVE_NO_XDEV)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                if place in _PROVIDED:
                    raise CommandError(
                        f"try: {directory} is not part of the view: the command has a {place} of its own",
                        hint="-w DIR starts the command elsewhere",
                    ) from None
                raise CommandError(
                    f"try: {directory} is on another filesystem than /, mounted at {place}: "
                    "the command would see an empty directory",
                    hint=f"-v {place}:{place}:O shows it, and throws away what is changed there\n"
                    f"-v {place}:{place} shows it unprotected: what is changed there is changed at once\n"
                    "-w DIR starts the command elsewhere",
                ) from None
            os.close(fd)
    except OSError as error:
        raise CommandError.of("try: the working directory", error) from error
    finally:
        os.close(root_fd)


def _with_system_programs(path: str) -> str:
    """PATH with the places that a user's own often lacks, and root's has: dpkg refuses to work without them."""
    present = path.split(":") if path else []
    return ":".join([*present, *(place for place in SEARCH_PATH.split(":") if place not in present)])


# -- what to do with the changes ---------------------------------------------------------------------------------------


def _try(job: Job, store: ContainerStore, arguments: Namespace) -> int:
    container = start.create(job, store)
    exit_code = start.run(job, store, container)
    container = store.load(container.id)
    outcome = _Outcome(store, container, exit_code)
    try:
        found = diff.changes_of(container)
        diff.remember(container, found)
        return outcome.conclude(found.changes, arguments)
    except KeyboardInterrupt:
        outcome.tell_kept()
        raise
    except CommandError:
        outcome.tell_kept()
        raise


class _Outcome:
    """The end of one try."""

    def __init__(self, store: ContainerStore, container: Container, exit_code: int) -> None:
        self._store: Final = store
        self._container: Final = container
        self._exit_code: Final = exit_code
        self._exists = True  # until it is applied or dropped

    def conclude(self, changes: list[Change], arguments: Namespace) -> int:
        """List, decide, do. Returns the exit code of the whole. Raises: CommandError if it was not to be applied."""
        asks = not (arguments.apply or arguments.keep or arguments.discard or arguments.json)
        asks = asks and sys.stdin.isatty() and sys.stdout.isatty()
        if not arguments.json:
            _show(changes)
        if not changes:
            self._drop()
            return self._report(changes, arguments, "nothing")
        if asks:
            return self._ask(changes)
        if arguments.keep:
            self.tell_kept()
            return self._report(changes, arguments, "kept")
        if not arguments.apply:
            self._drop()
            return self._report(changes, arguments, "dropped")
        return self._apply(changes, arguments)

    def _apply(self, changes: list[Change], arguments: Namespace) -> int:
        try:
            if self._exit_code:
                raise CommandError(f"not applied: the command failed with exit code {self._exit_code}")
            self._put_in_place(force=arguments.force)
        except CommandError as error:
            self._report(changes, arguments, "kept", str(error))
            print(tell(error), file=sys.stderr)
            self.tell_kept()
            return self._exit_code or OWN_FAILURE
        return self._report(changes, arguments, "applied")

    def _ask(self, changes: list[Change]) -> int:
        while True:
            try:
                answer = input(_QUESTION).strip().lower()
            except EOFError:
                print()
                answer = "k"
            if answer in ("l", "list"):
                output.print_table(changes)
            elif answer in ("d", "drop", "discard"):
                self._drop()
                return self._exit_code
            elif answer in ("k", "keep"):
                self.tell_kept()
                return self._exit_code
            elif answer in ("a", "apply"):
                try:
                    self._put_in_place(force=False)
                except CommandError as error:
                    print(tell(error), file=sys.stderr)
                    continue
                print("applied")
                return self._exit_code

    def _put_in_place(self, *, force: bool) -> None:
        if diff.is_begun(self._container):
            applying.carry_on(self._store, self._container, force=force)
        else:
            applying.put_in_place(self._store, diff.prepare(self._container), force=force)
        self._exists = False

    def _drop(self) -> None:
        diff.remove(self._store, self._container)
        self._exists = False

    def tell_kept(self) -> None:
        """Say that nothing is lost, and how to go on."""
        if self._exists:
            name = self._container.name
            print(
                f"unionfs: changes are kept as {name}: unionfs diff {name}, unionfs apply {name}, unionfs rm {name}",
                file=sys.stderr,
            )

    def _report(self, changes: list[Change], arguments: Namespace, done: str, error: str = "") -> int:
        if arguments.json:
            shown: dict[str, Any] = {
                "command": [os.fsencode(word).decode(errors="replace") for word in self._container.command],
                "exit_code": self._exit_code,
                "changes": output.as_json(changes),
                "done": done,
            }
            if done == "kept":
                shown["name"] = self._container.name
            if error:
                shown["error"] = error
            print(json.dumps(shown))
        return self._exit_code


def _show(changes: list[Change]) -> None:
    if not sys.stdout.isatty():
        output.print_lines(changes, sizes=True)
        return
    told = output.worth_telling(changes)
    if told:
        print()
        output.print_table(told, _ROWS)
    print(f"{output.summary(changes)}")
