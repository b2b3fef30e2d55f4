"""`unionfs cp`: copy files between a container, running or not, and this machine."""

from __future__ import annotations

import os
import sys
from typing import Final, NamedTuple

from unionfs.cli import each, notes
from unionfs.cli.arguments import Parser
from unionfs.containers import tarstreams
from unionfs.containers.copy import Directory, copy_path, of_the_kernel
from unionfs.containers.root_access import reach
from unionfs.containers.store import ContainerStore
from unionfs.trees.open_beneath import open_in_root

_DESCRIPTION: Final = """\
Copy SOURCE, a file or a directory tree, to DESTINATION; one of them is CONTAINER:PATH. If DESTINATION is an existing
directory, the copy is made in it; SOURCE/. copies only the content of a directory. Copies belong to you, or in the
container to root, unless --archive keeps the owners. Symlinks are copied as such, and none leads out of the container.
With - as DESTINATION a tar is written to standard output, and with - as SOURCE a tar is read and unpacked into a
directory. /proc, /sys and /dev of a running container are empty in a copy of their parent directory."""


class Side(NamedTuple):
    """One end of a copy."""

    container: str  # empty: this machine
    path: str


def main(argv: list[str]) -> int:
    """Run `unionfs cp ARGV`."""
    parser = Parser("cp", _DESCRIPTION)
    parser.usage = "unionfs cp [OPTIONS] CONTAINER:PATH DESTINATION\n       unionfs cp [OPTIONS] SOURCE CONTAINER:PATH"
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("destination", metavar="DESTINATION")
    parser.add_argument("-a", "--archive", action="store_true", help="keep the owners")
    each.add_root(parser)
    arguments = parser.parse(argv)
    source, destination = side(arguments.source), side(arguments.destination)
    if bool(source.container) == bool(destination.container):
        parser.error("exactly one of SOURCE and DESTINATION must be CONTAINER:PATH")
    store = ContainerStore(arguments.root)
    container = store.find(source.container or destination.container)
    here = os.getcwd()

    def body(root_fd: int) -> None:
        if arguments.destination == "-":
            _stream_out(root_fd, source.path)
            return
        if arguments.source == "-":
            _stream_in(root_fd, destination.path, keep_owners=arguments.archive)
            return
        outside = Directory(None, here)
        inside = Directory(root_fd, "/")
        from_, to = (inside, outside) if source.container else (outside, inside)
        copy_path(from_, source.path, to, destination.path, keep_owners=arguments.archive)

    reach(container, body, "cp", notes.warn)
    return 0


def _stream_out(root_fd: int, path: str) -> None:
    above, name = os.path.split(("/" + path).rstrip("/"))
    is_content = name in ("", ".", "..")
    dir_fd = open_in_root(root_fd, path or "/" if is_content else above or "/", os.O_PATH | os.O_DIRECTORY)
    try:
        name = "." if is_content else name
        tarstreams.write(dir_fd, name, sys.stdout.buffer, name, of_the_kernel(root_fd))
        sys.stdout.buffer.flush()
    finally:
        os.close(dir_fd)


def _stream_in(root_fd: int, path: str, *, keep_owners: bool) -> None:
    os.close(Directory(root_fd, "/").open(path, os.O_PATH | os.O_DIRECTORY))
    tarstreams.extract(sys.stdin.buffer, root_fd, "/" + path.strip("/"), None if keep_owners else (0, 0))


def side(text: str) -> Side:
    """CONTAINER:PATH or a path; one with a slash before the colon is a path."""
    name, colon, path = text.partition(":")
    if not colon or not name or "/" in name or name.startswith("."):
        return Side("", text)
    return Side(name, path)
