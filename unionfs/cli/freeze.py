"""`unionfs freeze`: make the upper of a union or container a read-only branch, with an empty upper on top of it."""

from __future__ import annotations

import json
from typing import Final

from unionfs.cli import notes, store_flags
from unionfs.cli.arguments import Parser
from unionfs.cli.branch import is_mountpoint
from unionfs.cli.errors import CommandError
from unionfs.containers import freeze
from unionfs.containers.store import ContainerStore
from unionfs.control import branch_client
from unionfs.control.branch_client import BranchError
from unionfs.printable import printable

_DESCRIPTION: Final = """\
Make the upper of a mounted union, or of a container, a read-only branch, with an empty upper on top of it, atomically.
The files written so far are in the printed directory. The union never changes it again, so it can be packed or compared
while programs continue; their later changes copy files up from it.

The directory is beside the upper; NAME is its name there (by default the upper's with a number). The upper keeps its
path. The work directory lists frozen directories, so that the next mount of the same upper and work directory has
them. Of a container, running or not, the directory is named upper.NAME, and counts as a part of its changes."""

_EPILOG: Final = """\
Files that are open for writing are copied up at their next write. Refused with --watch, --passthrough or --transport
pyfuse3, on mounts that podman or another program has made by the -o form.

--json prints one object: path."""


def main(argv: list[str]) -> int:
    """Run `unionfs freeze ARGV`."""
    parser = Parser("freeze", _DESCRIPTION, _EPILOG)
    parser.add_argument("mountpoint", metavar="MOUNTPOINT|CONTAINER")
    parser.add_argument("name", metavar="NAME", nargs="?", default="")
    parser.add_argument("--json", action="store_true", help="print JSON")
    store_flags.add_root(parser)
    arguments = parser.parse(argv)
    try:
        if not is_mountpoint(arguments.mountpoint):
            container = ContainerStore(arguments.root).find(arguments.mountpoint)
            path = freeze.freeze(container, arguments.name, notes.warn).config.rootfs.lowers[0]
            print(json.dumps({"path": path}) if arguments.json else printable(path))
            return 0
        path = branch_client.freeze(branch_client.at(arguments.mountpoint), arguments.mountpoint, arguments.name)
    except BranchError as error:
        raise CommandError(f"freeze failed: {arguments.mountpoint}: {error}") from error
    print(json.dumps({"path": path}) if arguments.json else printable(path))
    return 0
