"""`unionfs complete`: bring all data of changed files to the upper directories of unions."""

from __future__ import annotations

import errno
import os
from typing import Final

from unionfs.cli.arguments import Parser
from unionfs.cli.errors import CommandError
from unionfs.syscalls import files

_EPILOG: Final = """\
A union copies only what changes of a large file: its attributes, or the blocks that are written. The rest of the data
stays in the lower directory (see docs/storage-drivers.md). Only a union of the same directories can show such a file:
use this before anything else reads the upper directory.

exit codes: 0 all files of the upper directories have all of their data; 1 some have not, as the message says"""


def main(argv: list[str]) -> int:
    """Run `unionfs complete ARGV`."""
    parser = Parser(
        "complete",
        "Bring all data of the changed files to the upper directories of mounted unions, and wait for it.",
        _EPILOG,
    )
    parser.add_argument("mountpoints", metavar="MOUNTPOINT", nargs="+", help="where a union is mounted")
    arguments = parser.parse(argv)
    for mountpoint in arguments.mountpoints:
        complete(mountpoint)
    return 0


def complete(mountpoint: str) -> None:
    """Bring all data of one union's files to its upper directory. Raises: CommandError."""
    what = f"completing the upper directory of {mountpoint}"
    try:
        root_fd = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(root_fd)  # names of hard links
            files.bring_data(root_fd)
        finally:
            os.close(root_fd)
    except OSError as error:
        raise CommandError(f"{what} failed: {error.strerror}", hint=_HINTS.get(error.errno or 0, "")) from error


_HINTS: Final = {
    errno.ENOTTY: "it must be the mountpoint of a union that is served by the kernel transport",
    errno.EIO: "the daemon's log (unionfs mount --log) names the file: its lower file is missing or has changed",
    errno.ENOSPC: "the filesystem of the upper directory is full",
    errno.EDQUOT: "a quota for the upper directory is used up",
    errno.EPERM: "only root and the user who mounted the union may ask for it",
}
