"""`unionfs logout`: delete the stored user name and password of a registry."""

from __future__ import annotations

import os

from layers import credentials, reference
from unionfs.cli import image_flags
from unionfs.cli.arguments import Parser
from unionfs.containers import images
from unionfs.printable import printable


def main(argv: list[str]) -> int:
    """Run `unionfs logout ARGV`."""
    parser = Parser(
        "logout",
        "Delete the user name and password for REGISTRY (default: docker.io) from all files and credential helpers.",
        image_flags.EPILOG,
    )
    parser.add_argument("registry", metavar="REGISTRY", nargs="?", default=reference.DEFAULT_REGISTRY)
    parser.add_argument("--authfile", metavar="FILE", help="the file with user names and passwords")
    image_flags.add_debug(parser)
    arguments = parser.parse(argv)
    if arguments.authfile:
        os.environ["REGISTRY_AUTH_FILE"] = arguments.authfile
    with images.failures():
        for place in credentials.erase(reference.check_registry(arguments.registry)):
            print(f"removed from {printable(place)}")
    return 0
