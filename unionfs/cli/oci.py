"""`unionfs oci`: an OCI runtime that has the commands and flags of runc."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING, Any, Final

from unionfs.cli.arguments import Parser
from unionfs.cli.errors import FAILED, CommandError

if TYPE_CHECKING:
    from unionfs.oci.report import Report

_DESCRIPTION: Final = """\
An OCI runtime: podman, buildah, containerd and other engines start containers with it, as with runc.

  unionfs oci create [-b BUNDLE] ID          make a container; its process waits to be started
  unionfs oci start ID                       have it execute its command
  unionfs oci run [-b BUNDLE] ID             both; wait for it, and delete it
  unionfs oci exec ID COMMAND...             execute one more process in it
  unionfs oci state | ps | list | features   containers, processes, abilities, as JSON or in tables
  unionfs oci kill | pause | resume | update | delete ID

Engines are given the program `unionfs-oci`, which takes the same words: podman --runtime $(which unionfs-oci) run ...
docs/oci-runtime.md lists the supported parts of the specification, and shows configurations. Flags have no defaults
from the environment here, as engines expect it."""

_ENTERING: Final = {"create", "run", "exec"}
"""Commands of which a process enters the container."""
_EPILOG: Final = """\
exit codes: 0 done, 1 failed; run and exec pass on the command's own."""


def main(argv: list[str]) -> int:
    """Run `unionfs oci ARGV`."""
    return _main(argv, _parser("unionfs oci"))


def command() -> None:
    """The program `unionfs-oci`, which engines call as a runtime."""
    from unionfs import standard_descriptors

    standard_descriptors.open_missing()
    if _ENTERING & set(sys.argv[1:]):
        from unionfs.launcher import own_executable

        own_executable.protect()  # first: it executes the program again
    try:
        status = _main(sys.argv[1:], _parser("unionfs-oci"))
    except CommandError as error:
        print(f"unionfs-oci: {error}", file=sys.stderr)
        status = error.status
    except KeyboardInterrupt:
        status = 130
    sys.stdout.flush()
    os._exit(status)


def _main(argv: list[str], parser: Parser) -> int:
    arguments = parser.parse_args(argv)
    from unionfs.oci.errors import OciError
    from unionfs.oci.report import Report

    if arguments.command is None:
        parser.error("no command given")
    try:
        report = Report(arguments.log, as_json=arguments.log_format == "json", debug=arguments.debug)
    except OSError as error:
        raise CommandError.of("opening the log", error) from error
    try:
        if arguments.systemd_cgroup:
            why = "systemd cgroups are not supported: configure the engine's cgroup manager as cgroupfs"
            raise OciError(f"--systemd-cgroup: {why}")
        return _COMMANDS[arguments.command](arguments, report)
    except OciError as error:
        if report.is_file or arguments.log_format == "json":
            report.error(str(error))
        if report.is_file or arguments.log_format != "json":
            from unionfs.printable import printable_line

            print(printable_line(f"unionfs-oci: {error}"), file=sys.stderr)
        return FAILED


def _container(arguments: argparse.Namespace) -> Any:
    from unionfs.oci.state import Container

    return Container(_root(arguments), arguments.id)


def _root(arguments: argparse.Namespace) -> str:
    from unionfs.oci.state import default_root

    return arguments.state_root or default_root()


def _options(arguments: argparse.Namespace) -> Any:
    from unionfs.oci.create import Options

    tolerant = {"true": True, "false": False}.get(arguments.rootless)
    return Options(
        root=_root(arguments),
        identity=arguments.id,
        bundle=arguments.bundle,
        console_socket=arguments.console_socket,
        pid_file=arguments.pid_file,
        pivot=not arguments.no_pivot,
        new_keyring=not arguments.no_new_keyring,
        preserve_fds=arguments.preserve_fds,
        tolerant=tolerant,
    )


def _create(arguments: argparse.Namespace, report: Report) -> int:
    from unionfs.launcher import own_executable

    own_executable.protect()
    from unionfs.oci.create import create

    create(_options(arguments), report)
    return 0


def _run(arguments: argparse.Namespace, report: Report) -> int:
    from unionfs.launcher import own_executable

    own_executable.protect()
    from unionfs.oci.run import run

    return run(_options(arguments), report, detach=arguments.detach, keep=arguments.keep)


def _start(arguments: argparse.Namespace, report: Report) -> int:
    from unionfs.oci.start import start

    start(_container(arguments), report)
    return 0


def _state(arguments: argparse.Namespace, report: Report) -> int:
    from unionfs.oci.show import state_of

    del report
    print(json.dumps(state_of(_container(arguments)), indent=2))
    return 0


def _list(arguments: argparse.Namespace, report: Report) -> int:
    from unionfs.oci.show import states

    del report
    found = states(_root(arguments))
    if arguments.quiet:
        print("".join(f"{one['id']}\n" for one in found), end="")
    elif arguments.format == "json":
        print(json.dumps(found))
    else:
        names = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
        rows = [names, *([str(one[name.lower()]) for name in names] for one in found)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("   ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _kill(arguments: argparse.Namespace, report: Report) -> int:
    from unionfs.oci.end import kill, signal_number

    del report
    kill(_container(arguments), signal_number(arguments.signal), all_processes=arguments.all)
    return 0


def _delete(arguments: argparse.Namespace, report: Report) -> int:
    from unionfs.oci.end import delete

    delete(_container(arguments), report, force=arguments.force)
    return 0


def _exec(arguments: argparse.Namespace, report: Report) -> int:
    from unionfs.launcher import own_executable

    own_executable.protect()
    from unionfs.oci.exec import Request, execute
    from unionfs.oci.exec_process import Overrides, process_from

    container = _container(arguments)
    overrides = Overrides(
        args=tuple(arguments.args),
        cwd=arguments.cwd,
        env=tuple(arguments.env),
        user=arguments.user,
        groups=tuple(arguments.additional_gids),
        terminal=arguments.tty,
        no_new_privileges=arguments.no_new_privs,
        capabilities=tuple(arguments.cap),
        apparmor_profile=arguments.apparmor,
        selinux_label=arguments.process_label,
    )
    request = Request(
        detach=arguments.detach,
        console_socket=arguments.console_socket,
        pid_file=arguments.pid_file,
        preserve_fds=arguments.preserve_fds,
        cgroups=tuple(arguments.cgroup),
        ignore_paused=arguments.ignore_paused,
    )
    return execute(container, process_from(container, arguments.process, overrides), request, report)


def _ps(arguments: argparse.Namespace, report: Report) -> int:
    from unionfs.oci.show import pids

    del report
    found = pids(_container(arguments))
    if arguments.format == "json":
        print(json.dumps(found))
        return 0
    import subprocess

    words = arguments.ps_options or ["-ef"]
    done = subprocess.run(["ps", *words], stdout=subprocess.PIPE, check=False)
    lines = done.stdout.decode(errors="replace").splitlines()
    if done.returncode or not lines or "PID" not in lines[0].split():
        raise CommandError("ps: couldn't find PID field in ps output")
    column = lines[0].split().index("PID")
    wanted = {str(pid) for pid in found}
    print("\n".join([lines[0], *(line for line in lines[1:] if line.split()[column] in wanted)]))
    return 0


def _features(arguments: argparse.Namespace, report: Report) -> int:
    from unionfs.oci.show import features

    del arguments, report
    print(json.dumps(features(), indent=4))
    return 0


def _pause(arguments: argparse.Namespace, report: Report) -> int:
    from unionfs.oci.pause import pause

    del report
    pause(_container(arguments))
    return 0


def _resume(arguments: argparse.Namespace, report: Report) -> int:
    from unionfs.oci.pause import resume

    del report
    resume(_container(arguments))
    return 0


def _update(arguments: argparse.Namespace, report: Report) -> int:
    from unionfs.oci.config import load
    from unionfs.oci.fields import Field
    from unionfs.oci.pause import update

    update(
        _container(arguments), Field(load("/dev/stdin" if arguments.resources == "-" else arguments.resources)), report
    )
    return 0


_COMMANDS: Final = {
    "create": _create,
    "start": _start,
    "state": _state,
    "kill": _kill,
    "delete": _delete,
    "run": _run,
    "exec": _exec,
    "ps": _ps,
    "list": _list,
    "pause": _pause,
    "resume": _resume,
    "update": _update,
    "features": _features,
}


def _parser(prog: str) -> Parser:
    parser = Parser("oci", _DESCRIPTION, _EPILOG)
    parser.prog = prog
    add = parser.add_argument
    add("--debug", action="store_true", help="log more")
    add("--log", metavar="FILE", default="", help="where errors and warnings are written (default: standard error)")
    add("--log-format", choices=("text", "json"), default="text", help="of a log's lines")
    add("--root", dest="state_root", metavar="DIR", help="where the state of containers is kept, a tmpfs at best")
    add("--systemd-cgroup", action="store_true", help="refused: cgroups are made through their filesystem")
    add("--rootless", choices=("true", "false", "auto"), default="auto", help="whether cgroups may be missing")
    add("--criu", help=argparse.SUPPRESS)
    add("-v", "--version", action="version", version=_Version("%(prog)s"))
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=argparse.ArgumentParser)
    _add_creating(commands)
    _add_exec(commands)
    _add_simple(commands)
    return parser


class _Version(str):
    """The text of --version, made when argparse puts the program's name into it."""

    __slots__ = ()

    def __mod__(self, values: Any) -> str:
        from unionfs import version
        from unionfs.oci.config import VERSION
        from unionfs.syscalls import libseccomp

        return f"{values['prog']} version {version.installed()}\nspec: {VERSION}\nlibseccomp: {libseccomp.version()}"


def _add_creating(commands: Any) -> None:
    for name, summary in (
        ("create", "create a container; its process waits to be started"),
        ("run", "create and start a container, wait for it and delete it"),
    ):
        parser = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        add = parser.add_argument
        add("-b", "--bundle", metavar="DIR", default=".", help="the bundle (default: the current directory)")
        add("--console-socket", metavar="SOCKET", default="", help="gets the master side of the terminal")
        add("--pid-file", metavar="FILE", default="", help="gets the pid of the container's process")
        add("--no-pivot", action="store_true", help="do not change the root by pivot_root(2): on a ramdisk")
        add("--no-new-keyring", action="store_true", help="keep the session keyring of the caller")
        add("--preserve-fds", metavar="N", type=int, default=0, help="pass descriptors 3 to 2+N to the container")
        if name == "run":
            add("-d", "--detach", action="store_true", help="do not wait for the container")
            add("--keep", action="store_true", help="do not delete the container when it has ended")
            add("--no-subreaper", action="store_true", help=argparse.SUPPRESS)
        add("id", metavar="ID")


def _add_exec(commands: Any) -> None:
    summary = "execute one more process in a container"
    parser = commands.add_parser("exec", help=summary, description=summary, allow_abbrev=False)
    add = parser.add_argument
    add("--console-socket", metavar="SOCKET", default="", help="gets the master side of the terminal")
    add("--cwd", metavar="DIR", default="", help="working directory in the container")
    add("-e", "--env", metavar="NAME=VALUE", action="append", default=[], help="set an environment variable")
    add("-t", "--tty", action="store_true", help="give the process a terminal")
    add("-u", "--user", metavar="UID[:GID]", default="", help="ids of the process")
    add("-g", "--additional-gids", metavar="GID", type=int, action="append", default=[], help="further groups")
    add("-p", "--process", metavar="FILE", default="", help="the process as JSON: process of config.json")
    add("-d", "--detach", action="store_true", help="do not wait for the process")
    add("--pid-file", metavar="FILE", default="", help="gets the pid of the process")
    add("--process-label", metavar="LABEL", default="", help="refused: SELinux is not supported")
    add("--apparmor", metavar="PROFILE", default="", help="AppArmor profile of the process")
    add("--no-new-privs", action="store_true", default=None, help="let exec give no privileges")
    add("-c", "--cap", metavar="CAP", action="append", default=[], help="add a capability")
    add("--preserve-fds", metavar="N", type=int, default=0, help="pass descriptors 3 to 2+N to the process")
    add("--cgroup", metavar="[CONTROLLER:]PATH", action="append", default=[], help="a cgroup below the container's")
    add("--ignore-paused", action="store_true", help="also in a paused container")
    add("id", metavar="ID")
    add("args", metavar="COMMAND", nargs=argparse.REMAINDER)


def _add_simple(commands: Any) -> None:
    for name, summary in (
        ("start", "have a created container execute its command"),
        ("state", "print the state of a container as JSON"),
        ("pause", "stop all processes of a container"),
        ("resume", "continue all processes of a container"),
        ("kill", "send a signal (default: TERM) to a container's process"),
        ("delete", "remove a container that has ended"),
        ("ps", "list the processes of a container"),
        ("update", "change the limits of a container"),
    ):
        parser = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        add = parser.add_argument
        if name == "kill":
            add("-a", "--all", action="store_true", help="to all processes of the container")
        if name == "delete":
            add("-f", "--force", action="store_true", help="also one that runs, by SIGKILL, or that is not there")
        if name == "ps":
            add("-f", "--format", choices=("table", "json"), default="table")
        if name == "update":
            add(
                "-r", "--resources", metavar="FILE", required=True, help="linux.resources as JSON; - for standard input"
            )
        add("id", metavar="ID")
        if name == "kill":
            add("signal", metavar="SIGNAL", nargs="?", default="TERM")
        if name == "ps":
            add("ps_options", metavar="OPTION", nargs=argparse.REMAINDER, help="for ps(1)")
    parser = commands.add_parser("list", help="list containers", allow_abbrev=False)
    parser.add_argument("-f", "--format", choices=("table", "json"), default="table")
    parser.add_argument("-q", "--quiet", action="store_true", help="ids only")
    commands.add_parser("features", help="print the features of this runtime as JSON", allow_abbrev=False)
