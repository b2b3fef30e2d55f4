"""`unionfs umount`: unmount unions, and return when their daemons have ended."""

from __future__ import annotations

from typing import Final

from unionfs.cli.arguments import Parser
from unionfs.cli.complete import complete
from unionfs.cli.errors import CommandError
from unionfs.fuse.mounting import MountError
from unionfs.fuse.unmounting import unmount

_EPILOG: Final = """\
exit codes: 0 unmounted, and the daemon has ended; 1 not unmounted, or (see the message) the daemon continues for other
mount namespaces that show the union, too"""


def main(argv: list[str]) -> int:
    """Run `unionfs umount ARGV`."""
    parser = Parser("umount", "Unmount unions. The command returns when their daemons have ended.", _EPILOG)
    parser.add_argument("mountpoints", metavar="MOUNTPOINT", nargs="+")
    parser.add_argument(
        "-l",
        "--lazy",
        action="store_true",
        help="detach the mount now; it stays usable for programs that have it open (MNT_DETACH)",
    )
    parser.add_argument(
        "--complete",
        action="store_true",
        help="first bring all data of changed files to the upper directory (see unionfs complete)",
    )
    arguments = parser.parse(argv)
    for mountpoint in arguments.mountpoints:
        if arguments.complete:
            complete(mountpoint)
        try:
            unmount(mountpoint, lazy=arguments.lazy)
        except MountError as error:
            raise CommandError(str(error), hint=error.hint) from error
    return 0
