"""`unionfs tag`: give an image another name."""

from __future__ import annotations

from layers import reference
from unionfs.cli import image_flags
from unionfs.cli.arguments import Parser
from unionfs.cli.errors import CommandError
from unionfs.containers import images


def main(argv: list[str]) -> int:
    """Run `unionfs tag ARGV`."""
    parser = Parser("tag", "Give IMAGE also the name NAME; another image with this name loses it.", image_flags.EPILOG)
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("names", metavar="NAME", nargs="+", help="[REGISTRY/]NAME[:TAG]")
    image_flags.add_root(parser)
    image_flags.add_debug(parser)
    arguments = parser.parse(argv)
    with images.failures():
        wanted = [reference.parse(name) for name in arguments.names]
        for new in wanted:
            if new.digest is not None:
                raise CommandError(f"tagging failed: {new}: a digest cannot be given", status=2)
        store = image_flags.store_of(arguments)
        with store.adding():
            descriptor = store.find(arguments.image).descriptor
            for new in wanted:
                store.tag(descriptor, str(new))
    return 0
