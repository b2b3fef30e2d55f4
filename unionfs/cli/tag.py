"""`unionfs tag`: give an image one more name."""

from __future__ import annotations

from layers import reference
from unionfs.cli import image_store
from unionfs.cli.arguments import Parser
from unionfs.cli.errors import CommandError


def main(argv: list[str]) -> int:
    """Run `unionfs tag ARGV`."""
    parser = Parser("tag", "Give IMAGE the name NAME too; an image that had the name loses it.", image_store.EPILOG)
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("name", metavar="NAME", help="[REGISTRY/]NAME[:TAG]")
    image_store.add_root(parser)
    image_store.add_debug(parser)
    arguments = parser.parse(argv)
    with image_store.failures():
        new = reference.parse(arguments.name)
        if new.digest is not None:
            raise CommandError(f"tagging failed: {arguments.name}: a digest cannot be given", status=2)
        store = image_store.store_of(arguments)
        with store.adding():
            store.tag(store.find(arguments.image).descriptor, str(new))
    return 0
