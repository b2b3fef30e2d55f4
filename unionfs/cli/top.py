"""`unionfs top`: list the processes of a running container."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import Any, Final

from unionfs.cli import each, live
from unionfs.cli.arguments import Parser
from unionfs.cli.errors import CommandError, failed
from unionfs.containers import running
from unionfs.containers.store import ContainerStore
from unionfs.launcher import userns
from unionfs.launcher.namespace_socket import Namespaces
from unionfs.printable import printable
from unionfs.syscalls.namespaces import set_command_line, set_dumpable

_DESCRIPTION: Final = """\
List the processes of a running container, with their pids in the container. Without a container, list all unions of
this mount namespace and of running containers again after each interval, the busiest first."""

_EPILOG: Final = """\
--json prints a list of objects: pid and ppid in the container, uid, seconds (of processor time), command.
Without a container it prints such a list a line, of unions: union, and what `unionfs watch --json` prints."""


def main(argv: list[str]) -> int:
    """Run `unionfs top ARGV`."""
    parser = Parser("top", _DESCRIPTION, _EPILOG)
    help_ = "a name, an id, or the beginning of an id; default: all unions"
    parser.add_argument("container", metavar="CONTAINER", nargs="?", help=help_)
    parser.add_argument("--json", action="store_true", help="print JSON")
    live.add_flags(parser)
    each.add_root(parser)
    arguments = parser.parse(argv)
    if arguments.container is None:
        from unionfs.cli import top_unions

        return top_unions.run(arguments)
    container = ContainerStore(arguments.root).find(arguments.container)
    namespaces = running.enter(container, "top")
    read_fd, write_fd = os.pipe()
    try:
        pid = userns.fork(None, 0, lambda: _look(namespaces, write_fd))
    finally:
        namespaces.close()
        os.close(write_fd)
    with open(read_fd, "rb") as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    if not said:
        raise CommandError(failed("top", container.name, "its processes cannot be read"))
    found: list[dict[str, Any]] = json.loads(said)
    if arguments.json:
        print(json.dumps(found))
        return 0
    rows = [("PID", "PPID", "UID", "TIME", "COMMAND")]
    rows += [
        (str(one["pid"]), str(one["ppid"]), str(one["uid"]), _time(one["seconds"]), one["command"]) for one in found
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        numbers = " ".join(cell.rjust(width) for cell, width in zip(row[:4], widths, strict=True))
        print(f"{numbers}  {printable(row[4])}")
    return 0


def _look(namespaces: Namespaces, write_fd: int) -> int:
    """Read the container's /proc, in a child process in its namespaces."""
    set_command_line("unionfs-top")
    namespaces.enter()
    set_dumpable(False)
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    try:
        os.write(write_fd, json.dumps(_processes()).encode())
    finally:
        os._exit(0)


def _processes() -> list[dict[str, Any]]:
    ticks = os.sysconf("SC_CLK_TCK")
    found = []
    for name in sorted((name for name in os.listdir("/proc") if name.isdecimal()), key=int):
        with suppress(OSError):
            with open(f"/proc/{name}/stat", "rb") as file:
                head, _, rest = file.read().rpartition(b")")
            with open(f"/proc/{name}/cmdline", "rb") as file:
                command = file.read().rstrip(b"\0").replace(b"\0", b" ") or b"[" + head.partition(b"(")[2] + b"]"
            fields = rest.split()
            if int(name) != os.getpid():
                seconds = (int(fields[11]) + int(fields[12])) / ticks
                found.append({
                    "pid": int(name), "ppid": int(fields[1]), "uid": os.stat(f"/proc/{name}").st_uid,
                    "seconds": round(seconds, 2), "command": command.decode(errors="replace"),
                })  # fmt: skip
    return found


def _time(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02}"
