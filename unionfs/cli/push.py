"""`unionfs push`: send an image to a registry."""

from __future__ import annotations

import functools

from layers import image
from unionfs.cli import image_store
from unionfs.cli.arguments import Parser
from unionfs.cli.progress import shown

_DESCRIPTION = """\
Send an image to the registry that its name says, or as DESTINATION to another.

Only what the registry does not have is sent; an upload that breaks goes on where it broke."""


def main(argv: list[str]) -> int:
    """Run `unionfs push ARGV`."""
    parser = Parser("push", _DESCRIPTION, image_store.EPILOG)
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("destination", metavar="DESTINATION", nargs="?")
    parser.add_argument("-q", "--quiet", action="store_true", help="print the digest only")
    image_store.add_remote(parser)
    image_store.add_root(parser)
    image_store.add_debug(parser)
    arguments = parser.parse(argv)
    with image_store.failures(), shown(quiet=arguments.quiet) as progress:
        import trio

        push = functools.partial(
            image.push,
            image_store.store_of(arguments),
            arguments.image,
            arguments.destination,
            remote=image_store.remote(arguments),
            progress=progress,
        )
        print(trio.run(push))
    return 0
