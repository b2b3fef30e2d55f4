"""`unionfs try`: run a command on a copy-on-write view of this machine; list, apply, keep or discard the changes."""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from argparse import Namespace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from unionfs.cli import notes, parents, run
from unionfs.cli.arguments import Parser
from unionfs.cli.errors import FAILURES, OWN_FAILURE, CommandError, format_failure
from unionfs.cli.mount_flags import volume_from
from unionfs.containers import host_view, start
from unionfs.containers.config import ContainerConfig, Mounts, Network, RootFilesystem
from unionfs.containers.record import Container
from unionfs.containers.store import ContainerStore
from unionfs.containers.volumes import VolumeStore
from unionfs.fuse.options import DEFAULT_TRANSPORT, TRANSPORTS
from unionfs.launcher.spec import Process
from unionfs.printable import printable

if TYPE_CHECKING:
    from unionfs.changes.listing import Change

_AFTERWARDS: Final = ("unionfs.containers.diff", "unionfs.containers.remove", "unionfs.cli.output")
"""Modules that are needed after the command; imported while it runs."""

_DESCRIPTION: Final = """\
Run COMMAND on a copy-on-write view of this machine: it sees all files, and its writes go to a separate directory. When
it has ended, list the changes, and apply them to this machine, keep or discard them. On a terminal you are asked.

The command needs no root: it is root in its view, so that package managers work. Files of other users are shown as
root's. Directory, environment, terminal and network are the current ones; the command cannot see the processes of this
machine. Filesystems other than that of / are shown as empty directories unless they are
named with -v; files written to /run, or to a /tmp in memory, are discarded."""

_EPILOG: Final = """\
examples:
  unionfs try apt-get install hello          list what the package would install
  unionfs try --apply make install           apply the changes if the command succeeds
  unionfs try --keep new -- ./configure.sh   then: unionfs diff new; unionfs apply new; unionfs rm new

Without a terminal, changes are listed, one on a line as KIND SIZE PATH, and discarded unless a flag says otherwise.
--json prints, as the last line, one object: command, exit_code, changes (as in `unionfs diff --json`), done
(applied, kept, dropped, or nothing), name (of the kept changes), and error (why they are not applied).

exit codes: the command's own, 128+N if signal N killed it, 125 if unionfs failed or the changes could not be applied,
126 if the command cannot be executed, 127 if it was not found."""

_ROWS: Final = 100
"""Maximum number of listed changes; the others are only counted, so that the command's output stays in view."""

_QUESTION: Final = "[a]pply to this machine, [k]eep for later, [d]rop, or [l]ist all? "


def main(argv: list[str]) -> int:
    """Run `unionfs try ARGV`."""
    arguments = _parser().parse(argv)
    store, config = ContainerStore(arguments.root), config_of(arguments)
    container = run.make_or_describe(store, config, arguments.keep or "", dry_run=arguments.dry_run)
    return 0 if container is None else _try(container, arguments)


def _parser() -> Parser:
    parser = Parser("try", _DESCRIPTION, _EPILOG)
    parser.usage = "unionfs try [OPTIONS] COMMAND [ARG...]"
    add = parser.add_argument
    add("words", metavar="COMMAND", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    then = parser.add_mutually_exclusive_group()
    then.add_argument("--apply", action="store_true", help="apply the changes if the command succeeds")
    then.add_argument("--keep", metavar="NAME", help="keep the changes as NAME, for unionfs diff, apply and rm")
    then.add_argument("--discard", action="store_true", help="discard the changes (the default without a terminal)")
    add(
        "--force",
        action="store_true",
        help="with --apply: replace even files that were changed on this machine meanwhile",
    )
    add("--json", action="store_true", help="list the changes as JSON")
    add(
        "-v",
        "--volume",
        metavar="SRC:DST[:ro|:O]",
        action="append",
        help="show SRC of this machine at DST, unprotected; ro: read-only; O: changes of it are discarded",
    )
    add("-w", "--workdir", metavar="DIR", help="the working directory (default: the current one)")
    add("--network", choices=("host", "none"), default="host", help="this machine's network, or none (default: host)")
    add("--transport", choices=tuple(TRANSPORTS), default=DEFAULT_TRANSPORT, help=f"default: {DEFAULT_TRANSPORT}")
    run.add_no_keeper(parser)
    add("--root", metavar="DIR", help="the store of containers (default: $XDG_DATA_HOME/unionfs)")
    add("--dry-run", action="store_true", help="only print the steps")
    add("--debug", action="store_true", help="log everything to the container's daemon.log; show tracebacks")
    return parser


def config_of(arguments: Namespace) -> ContainerConfig:
    """The configuration for the command line. Raises: CommandError, ContainerError."""
    words = list(arguments.words)
    if words[:1] == ["--"]:
        del words[0]
    if not words:
        raise CommandError("try: no command given", hint="for a shell: unionfs try bash")
    store = VolumeStore(ContainerStore(arguments.root).root)
    volumes = tuple(volume_from(text, store) for text in arguments.volume or ())
    workdir = _working_directory(arguments.workdir)
    if not any(workdir == volume.target or workdir.startswith(volume.target + "/") for volume in volumes):
        host_view.check_shown(workdir)
    environment = dict(os.environ)
    environment["PATH"] = host_view.with_system_programs(environment.get("PATH", ""))
    return ContainerConfig(
        process=Process(
            command=tuple(words),
            environment=tuple(environment.items()),
            workdir=workdir,
            interactive=True,
            terminal=os.isatty(0) and os.isatty(1),
        ),
        rootfs=RootFilesystem(lowers=("/",), transport=arguments.transport, keeper=not arguments.no_keeper),
        mounts=Mounts(volumes=volumes),
        network=Network(private=arguments.network == "none"),
        kind="try",
        hostname=socket.gethostname(),
    )


def _working_directory(asked: str | None) -> str:
    try:
        return os.path.realpath(asked, strict=True) if asked else os.getcwd()
    except OSError as error:
        raise CommandError.of("try: the working directory", error, hint="choose one with -w DIR") from error


# -- what to do with the changes ---------------------------------------------------------------------------------------


def _try(container: Container, arguments: Namespace) -> int:
    exit_code = start.run(container, notes.warn, _while_it_runs, debug=arguments.debug)
    from unionfs.containers import diff

    store = ContainerStore(container.root)
    container = store.load(container.id)
    outcome = _Outcome(store, container, exit_code)
    try:
        found = diff.changes_of(container)
        diff.save_list(container, found)
        return outcome.conclude(found.changes, arguments)
    except (KeyboardInterrupt, *FAILURES):
        outcome.tell_kept()
        raise


def _while_it_runs() -> None:
    parents.leave_beside_container()
    for module in _AFTERWARDS:
        import_module(module)


class _Outcome:
    """What happens after the command: the changes are listed, and applied, kept or discarded."""

    def __init__(self, store: ContainerStore, container: Container, exit_code: int) -> None:
        self._store: Final = store
        self._container: Final = container
        self._command: Final = container.config.process.command
        self._exit_code: Final = exit_code
        self._exists = True  # false once its changes are applied or discarded

    def conclude(self, changes: list[Change], arguments: Namespace) -> int:
        """List and handle the changes. Returns the exit code. Raises: CommandError if they could not be applied."""
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
        except FAILURES as error:
            self._report(changes, arguments, "kept", str(error))
            print(format_failure(error), file=sys.stderr)
            self.tell_kept()
            return self._exit_code or OWN_FAILURE
        return self._report(changes, arguments, "applied")

    def _ask(self, changes: list[Change]) -> int:
        from unionfs.cli import output

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
                except FAILURES as error:
                    print(format_failure(error), file=sys.stderr)
                    continue
                print("applied")
                return self._exit_code

    def _put_in_place(self, *, force: bool) -> None:
        from unionfs.cli import apply as applying
        from unionfs.containers.apply import is_begun, prepare

        if is_begun(self._container):
            applying.carry_on(self._container, self._remove, force=force)
        else:
            applying.put_in_place(prepare(self._container), self._remove, force=force)
        self._exists = False

    def _remove(self) -> None:
        from unionfs.containers.remove import remove

        remove(self._store, self._container)

    def _drop(self) -> None:
        self._remove()
        self._exists = False

    def tell_kept(self) -> None:
        """Print that the changes are kept, and the commands for them."""
        if self._exists:
            name = printable(self._container.name)
            print(
                f"unionfs: changes are kept as {name}: unionfs diff {name}, unionfs apply {name}, unionfs rm {name}",
                file=sys.stderr,
            )

    def _report(self, changes: list[Change], arguments: Namespace, done: str, error: str = "") -> int:
        if arguments.json:
            from unionfs.cli import output

            shown: dict[str, Any] = {
                "command": [
                    os.fsencode(word).decode(errors="replace") for word in self._container.config.process.command
                ],
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
    from unionfs.cli import output

    if not sys.stdout.isatty():
        output.print_lines(changes, sizes=True)
        return
    told = output.worth_telling(changes)
    if told:
        print()
        output.print_table(told, _ROWS)
    print(f"{output.summary(changes)}")
