"""`unionfs ps`: list containers."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from typing import Any, Final

from unionfs.cli import filter_flags, store_flags
from unionfs.cli.arguments import Parser
from unionfs.cli.errors import format_failure
from unionfs.cli.units import human_duration
from unionfs.containers.record import Container
from unionfs.containers.store import ContainerStore
from unionfs.printable import printable

_EPILOG: Final = """\
--json prints one list of objects: id, name, kind (run or try), image,
image_store (the directory of the store that has the image), lowers, command, created (seconds since 1970),
status (created, starting, running or exited), exit_code (null if it was killed or has not ended) and pid (null unless
it is running)."""

_COLUMN_MAX: Final = 30
_PAST: Final = ("status=", "exited=", "abandoned=")  # filters that select containers that are not running


def main(argv: list[str]) -> int:
    """Run `unionfs ps ARGV`."""
    parser = Parser("ps", "List running containers, or all with -a.", _EPILOG)
    parser.add_argument("-a", "--all", action="store_true", help="list all containers, also those that are not running")
    parser.add_argument("-q", "--quiet", action="store_true", help="print ids only")
    parser.add_argument("--no-trunc", action="store_true", help="do not shorten ids, paths and commands")
    parser.add_argument("-n", "--last", metavar="N", type=int, help="list the N newest containers, in any state")
    parser.add_argument("-l", "--latest", action="store_true", help="list the newest container, in any state")
    parser.add_argument(
        "-f",
        "--filter",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="only containers with this id, name, status, exited, ancestor, label, volume or driver; "
        "abandoned=true: with --rm, and killed on this machine before they removed themselves",
    )
    parser.add_argument("--format", metavar="FORMAT", help="json, table, or a line such as '{{.Names}} {{.Status}}'")
    parser.add_argument("--json", action="store_true", help="print JSON")
    store_flags.add_root(parser)
    arguments = parser.parse(argv)
    fits = filter_flags.all_of(arguments.filter)
    last = 1 if arguments.latest else arguments.last
    everything = arguments.all or last is not None or any(text.startswith(_PAST) for text in arguments.filter)
    known = ContainerStore(arguments.root).list(lambda error: print(format_failure(error), file=sys.stderr))
    containers = [one for one in known if (everything or one.status == "running") and fits(one)]
    containers.reverse()  # the newest first, as with docker and podman
    if last is not None and last >= 0:
        del containers[last:]
    if arguments.format and arguments.format not in ("table", "json"):
        for container in containers:
            print(filter_flags.formatted(arguments.format, _fields(container)))
        return 0
    if arguments.json or arguments.format == "json":
        print(json.dumps([_as_json(container) for container in containers]))
        return 0
    if arguments.quiet:
        for container in containers:
            print(container.id if arguments.no_trunc else container.id[:12])
        return 0
    rows: list[tuple[str, ...]] = [("CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "NAME")]
    rows += [_row(container, whole=arguments.no_trunc) for container in containers]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    sys.stdout.flush()
    return 0


def _fields(container: Container) -> dict[str, Any]:
    """The fields of docker's --format."""
    labels = [f"{name}={value}" for name, value in container.config.labels]
    return {
        "ID": container.id[:12],
        "Names": container.name,
        "Image": _text(_image(container)),
        "ImageStore": _image_store(container),
        "Command": shlex.join(map(_text, container.config.process.command)),
        "CreatedAt": time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(container.created)),
        "RunningFor": f"{human_duration(time.time() - container.created)} ago",
        "State": container.status,
        "Status": _status(container),
        "Labels": ",".join(labels),
        "Driver": container.config.rootfs.driver,
    }


def _row(container: Container, *, whole: bool) -> tuple[str, ...]:
    rootfs, command = printable(_image(container)), printable(shlex.join(container.config.process.command))
    if not whole:
        rootfs, command = _short(rootfs), _short(command)
    return (
        container.id if whole else container.id[:12],
        rootfs,
        command,
        f"{human_duration(time.time() - container.created)} ago",
        _status(container),
        printable(container.name),
    )


def _image(container: Container) -> str:
    """The image's name, its file, or the directories."""
    config = container.config
    if config.rootfs.file is not None:
        return config.rootfs.file.path
    return config.image.name if config.image else ":".join(container.base)


def _image_store(container: Container) -> str:
    """The root of the store that has its image; empty without an image."""
    image = container.config.image
    return _text(image.store or container.root) if image else ""


def _short(text: str) -> str:
    return text if len(text) <= _COLUMN_MAX else text[: _COLUMN_MAX - 3] + "..."


def _status(container: Container) -> str:
    if container.status == "running":
        return f"Up {human_duration(time.time() - container.state.started)}" if container.state.started else "Up"
    if container.status == "exited":
        code = "killed" if container.state.exit_code is None else str(container.state.exit_code)
        return f"Exited ({code})" + (
            f" {human_duration(time.time() - container.state.ended)} ago" if container.state.ended else ""
        )
    if container.status == "starting":
        return "Starting"
    return "Created"


def _as_json(container: Container) -> dict[str, Any]:
    running, config = container.status == "running", container.config
    return {
        "id": container.id,
        "name": container.name,
        "kind": container.config.kind,
        "image": config.image.name if config.image else "",
        "image_store": _image_store(container),
        "lowers": [_text(lower) for lower in container.config.rootfs.lowers],
        "command": [_text(word) for word in container.config.process.command],
        "created": container.created,
        "status": container.status,
        "exit_code": None if running else container.state.exit_code,
        "pid": container.state.pid if running else None,
    }


def _text(word: str) -> str:
    """Replace bytes that are not UTF-8 by U+FFFD: JSON has no bytes."""
    return os.fsencode(word).decode(errors="replace")
