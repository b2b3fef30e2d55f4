"""`unionfs try`: run a command on a copy-on-write view of this machine; list, apply, keep or discard the changes."""

from __future__ import annotations

import argparse
import json
import os
import socket
import stat
import sys
import time
from argparse import Namespace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from unionfs.cli import container_flags, notes, parents, run, store_flags, union_flags
from unionfs.cli.arguments import Parser
from unionfs.cli.errors import FAILURES, OWN_FAILURE, CommandError, format_failure
from unionfs.cli.mount_flags import volume_from
from unionfs.containers import host_view, running, start
from unionfs.containers.config import ContainerConfig, Mounts, Network, RootFilesystem
from unionfs.containers.errors import AlreadyRunningError, ContainerError, NotRunningError
from unionfs.containers.record import Container
from unionfs.containers.store import ContainerStore
from unionfs.containers.volumes import VolumeStore
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
  unionfs try --name s -- ./configure        begin a session; the next try --name s goes on in it
  unionfs try --fork s --name t -- make      begin another one with the present files of s

With --only, /tmp, /run and /var/tmp are empty and in memory, unless DIR is below them.

A session ends its processes with the command that began it; its changes stay. A command that joins lists no changes.
Options for mounts and network are those with which it was begun. unionfs tree, merge and drop manage forks.

Without a terminal, changes are listed, one on a line as KIND SIZE PATH, and discarded unless a flag says otherwise.
--json prints, as the last line, one object: command, exit_code, changes (as in `unionfs diff --json`, with mode, and
digest of new content), done (applied, kept, dropped, or nothing), name and apply (of kept changes: the command that
applies them), and error (why they are not applied).

exit codes: the command's own, 128+N if signal N killed it, 125 if unionfs failed or the changes could not be applied,
126 if the command cannot be executed, 127 if it was not found."""

_ASK_AGAIN_S: Final = 0.05

_ROWS: Final = 100
"""Maximum number of listed changes; the others are only counted, so that the command's output stays in view."""

_QUESTION: Final = "[a]pply to this machine, [k]eep for later, [d]rop, or [l]ist all? "


def main(argv: list[str]) -> int:
    """Run `unionfs try ARGV`."""
    arguments = _parser().parse(argv)
    arguments.keep = arguments.keep or arguments.name
    store, config = ContainerStore(arguments.root), config_of(arguments)
    if arguments.fork:
        origin = store.find(arguments.fork)
        if origin.config.kind != "try":
            raise CommandError(f"try: {origin.name} is no session of try", hint=f"unionfs fork {origin.name} forks it")
        if arguments.dry_run:
            print(f"fork {printable(origin.name)}")
            return 0
        from unionfs.containers import forks

        made = forks.fork(origin, arguments.keep or "", warn=notes.warn)
        return _try(_with_process(made, config), arguments, is_new=True)
    while True:
        try:
            return _run(store, config, arguments)
        except AlreadyRunningError:  # another process has begun the session meanwhile
            if not arguments.name:
                raise


def _run(store: ContainerStore, config: ContainerConfig, arguments: Namespace) -> int:
    session = _session(store, arguments.name) if arguments.name else None
    if session is not None and arguments.dry_run:
        print(f"run it in the session {printable(session.name)}")
        return 0
    if session is not None:
        return _join(session, config, arguments)
    try:
        container = run.make_or_describe(store, config, arguments.keep or "", dry_run=arguments.dry_run)
    except ContainerError:
        session = _session(store, arguments.name) if arguments.name else None
        if session is None:
            raise
        return _join(session, config, arguments)
    return 0 if container is None else _try(container, arguments, is_new=True)


def _session(store: ContainerStore, name: str) -> Container | None:
    """The session of this name, once it is started if another process does that; None if there is none."""
    while True:
        found = next((one for one in store.list() if one.name == name), None)
        if found is None or found.status != "starting":
            return found
        time.sleep(_ASK_AGAIN_S)


def _join(session: Container, config: ContainerConfig, arguments: Namespace) -> int:
    """Run the command in a session that exists: beside the command that runs in it, or alone."""
    if session.config.kind != "try":
        raise CommandError(f"try: {session.name} is no session of try", hint="choose another name")
    if session.status != "running":
        return _try(_with_process(session, config), arguments, is_new=False)
    from unionfs.cli import exec as exec_

    store = ContainerStore(session.root)
    try:
        return exec_.run_in(session, config.process)
    except NotRunningError:
        if store.load(session.id).is_process_one():
            raise  # it was not begun as a session
        running.wait(store, session)
        again = _session(store, arguments.name)
        if again is None:
            raise
        return _join(again, config, arguments)


def _with_process(session: Container, config: ContainerConfig) -> Container:
    return session._replace(config=session.config._replace(process=config.process, session=config.session))


def _parser() -> Parser:
    parser = Parser("try", _DESCRIPTION, _EPILOG)
    parser.usage = "unionfs try [OPTIONS] COMMAND [ARG...]"
    add = parser.add_argument
    add("words", metavar="COMMAND", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    then = parser.add_mutually_exclusive_group()
    then.add_argument("--apply", action="store_true", help="apply the changes if the command succeeds")
    then.add_argument("--keep", metavar="NAME", help="keep the changes as NAME, for unionfs diff, apply and rm")
    then.add_argument("--discard", action="store_true", help="discard the changes (the default without a terminal)")
    then.add_argument("--name", metavar="NAME", help="as --keep; in a session that exists, run a further command")
    add("--fork", metavar="SESSION", help="begin with the present files of SESSION, which was kept or is running")
    add("--only", metavar="DIR", help="the command may change files below DIR only; the rest is read-only")
    add("--write", metavar="DIR", action="append", help="DIR is not protected: as -v DIR:DIR")
    add(
        "--force",
        action="store_true",
        help="with --apply: replace even files that were changed on this machine meanwhile",
    )
    add("--json", action="store_true", help="list the changes as JSON")
    add("-q", "--quiet", action="store_true", help="do not list the changes")
    add(
        "-v",
        "--volume",
        metavar="SRC:DST[:ro|:O]",
        action="append",
        help="show SRC of this machine at DST, unprotected; ro: read-only; O: changes of it are discarded",
    )
    add("-w", "--workdir", metavar="DIR", help="the working directory (default: the current one)")
    add("--network", choices=("host", "none"), default="host", help="this machine's network, or none (default: host)")
    union_flags.add_transport(parser)
    union_flags.add_no_keeper(parser, container_flags.CONTAINER_ENDS)
    union_flags.add_partial_from(parser)
    store_flags.add_root(parser)
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
    written = [os.path.realpath(directory) for directory in arguments.write or ()]
    texts = [*(arguments.volume or ()), *(f"{directory}:{directory}" for directory in written)]
    volumes = tuple(volume_from(text, store) for text in texts)
    workdir = _working_directory(arguments.workdir)
    only = _only(arguments.only)
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
        rootfs=RootFilesystem(
            ("/",),
            transport=arguments.transport,
            keeper=not arguments.no_keeper,
            partial_from=arguments.partial_from,
            only=only,
        ),
        mounts=Mounts(volumes=volumes),
        network=Network(private=arguments.network == "none"),
        kind="try",
        session=bool(arguments.name),
        hostname=socket.gethostname(),
    )


def _only(directory: str | None) -> str:
    if directory is None:
        return ""
    real = os.path.realpath(directory)
    if not os.path.isdir(real):
        raise CommandError(f"try: --only {directory}: there is no such directory")
    try:
        host_view.check_shown(real)
    except ContainerError as error:
        hint = f"the view is of the filesystem of /; --write {real} shows it unprotected"
        raise CommandError(f"try: --only {directory}: it is on another filesystem than /", hint=hint) from error
    return real.rstrip("/")


def _working_directory(asked: str | None) -> str:
    try:
        return os.path.realpath(asked, strict=True) if asked else os.getcwd()
    except OSError as error:
        raise CommandError.of("try: the working directory", error, hint="choose one with -w DIR") from error


# -- what to do with the changes ---------------------------------------------------------------------------------------


def _try(container: Container, arguments: Namespace, *, is_new: bool) -> int:
    """`is_new`: it is removed if the command cannot be executed."""
    exit_code = start.run(container, notes.warn, _while_it_runs, again=not is_new, debug=arguments.debug)
    store = ContainerStore(container.root)
    return _conclude(_with_process(store.load(container.id), container.config), exit_code, arguments)


def _conclude(container: Container, exit_code: int, arguments: Namespace) -> int:
    from unionfs.containers import diff

    store = ContainerStore(container.root)
    digests: dict[bytes, str] = {}
    outcome = _Outcome(store, container, exit_code, digests)
    try:
        with store.changing(container) as current:  # a fork may have frozen it meanwhile
            found = diff.changes_of(current)
            diff.save_list(current, found)
            if arguments.json:
                digests.update(diff.digests(current, found))
        return outcome.conclude(found.changes, arguments)
    except (KeyboardInterrupt, *FAILURES):
        outcome.print_kept()
        raise


def _while_it_runs() -> None:
    parents.leave_beside_container()
    for module in _AFTERWARDS:
        import_module(module)


class _Outcome:
    """What happens after the command: the changes are listed, and applied, kept or discarded."""

    def __init__(self, store: ContainerStore, container: Container, exit_code: int, digests: dict[bytes, str]) -> None:
        """`digests`: of files with new content, by path."""
        self._store: Final = store
        self._container: Final = container
        self._command: Final = container.config.process.command
        self._exit_code: Final = exit_code
        self._digests: Final = digests
        self._exists = True  # false once its changes are applied or discarded

    def conclude(self, changes: list[Change], arguments: Namespace) -> int:
        """List and handle the changes. Returns the exit code. Raises: CommandError if they could not be applied."""
        asks = not (arguments.apply or arguments.keep or arguments.discard or arguments.json or arguments.quiet)
        asks = asks and sys.stdin.isatty() and sys.stdout.isatty()
        if not (arguments.json or arguments.quiet):
            _show(changes)
        if not changes and not arguments.name:
            self._drop()
            return self._report(changes, arguments, "nothing")
        if asks:
            return self._ask(changes)
        if arguments.keep:
            if not arguments.quiet:
                self.print_kept()
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
            self.print_kept()
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
                self.print_kept()
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

        with self._store.changing(self._container) as current:
            if is_begun(current):
                applying.carry_on(current, self._remove, force=force)
            else:
                applying.put_in_place(prepare(current), self._remove, force=force)
        self._exists = False

    def _remove(self) -> None:
        from unionfs.containers.remove import remove

        remove(self._store, self._container)

    def _drop(self) -> None:
        self._remove()
        self._exists = False

    def print_kept(self) -> None:
        """Print that the changes are kept, and the commands for them."""
        if self._exists:
            name = printable(self._container.name)
            print(
                f"unionfs: changes are kept as {name}: unionfs diff {name}, unionfs apply {name}, unionfs rm {name}",
                file=sys.stderr,
            )

    def _report(self, changes: list[Change], arguments: Namespace, done: str, error: str = "") -> int:
        if arguments.json:
            shown: dict[str, Any] = {
                "command": [
                    os.fsencode(word).decode(errors="replace") for word in self._container.config.process.command
                ],
                "exit_code": self._exit_code,
                "changes": self._with_digests(changes),
                "done": done,
            }
            if done == "kept":
                shown["name"] = self._container.name
                shown["apply"] = ["unionfs", "apply", "--root", self._container.root, self._container.name]
            if error:
                shown["error"] = error
            print(json.dumps(shown))
        return self._exit_code

    def _with_digests(self, changes: list[Change]) -> list[dict[str, Any]]:
        from unionfs.cli import output

        rows = output.as_json(changes)
        for row, change in zip(rows, changes, strict=True):
            if change.new is not None:
                row["mode"] = f"{stat.S_IMODE(change.new.mode):04o}"
            if change.path in self._digests:
                row["digest"] = self._digests[change.path]
        return rows


def _show(changes: list[Change]) -> None:
    from unionfs.cli import output

    if not sys.stdout.isatty():
        output.print_lines(changes, sizes=True)
        return
    shown = output.worth_telling(changes)
    if shown:
        print()
        output.print_table(shown, _ROWS)
    print(f"{output.summary(changes)}")
