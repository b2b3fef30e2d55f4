"""`unionfs umount`: unmount unions, and return when the processes that served them have gone."""

from __future__ import annotations

from typing import Final

from unionfs.cli.arguments import Parser
from unionfs.cli.errors import CommandError
from unionfs.fuse.mounting import MountError
from unionfs.fuse.unmounting import unmount

_EPILOG: Final = """\
exit codes: 0 unmounted and ended; 1 not unmounted, or, as the message says, its daemon lives on for other mount
namespaces that show the union, too"""


def main(argv: list[str]) -> int:
    """Run `unionfs umount ARGV`."""
    parser = Parser("umount", "Unmount unions. The command returns when their daemons have gone.", _EPILOG)
    parser.add_argument("mountpoints", metavar="MOUNTPOINT", nargs="+")
    parser.add_argument(
        "-l", "--lazy", action="store_true", help="take it away now, and for programs that use it when they end"
    )
    arguments = parser.parse(argv)
    for mountpoint in arguments.mountpoints:
        try:
            unmount(mountpoint, lazy=arguments.lazy)
        except MountError as error:
            raise CommandError(str(error), hint=error.hint) from error
    return 0
