"""`unionfs push`: send images to a registry."""

from __future__ import annotations

import functools
from argparse import Namespace

from layers import image, reference
from layers.errors import Malformed, NotFound
from layers.store import Store
from unionfs.cli import image_flags, remote_flags
from unionfs.cli.arguments import Parser
from unionfs.cli.progress import shown
from unionfs.containers import images
from unionfs.printable import printable

_DESCRIPTION = """\
Send an image to the registry of its name, or to that of DESTINATION under this name.

Layers that the registry has are not sent again; an interrupted upload is resumed. An image for several
platforms, as `pull --all-platforms` or another tool stored it, is sent whole."""


def main(argv: list[str]) -> int:
    """Run `unionfs push ARGV`."""
    parser = Parser("push", _DESCRIPTION, image_flags.EPILOG)
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("destination", metavar="DESTINATION", nargs="?")
    parser.add_argument("-a", "--all-tags", action="store_true", help="push all tags of the repository IMAGE")
    parser.add_argument("-q", "--quiet", action="store_true", help="print digests only")
    remote_flags.add(parser)
    image_flags.add_root(parser)
    image_flags.add_debug(parser)
    arguments = parser.parse(argv)
    with images.failures(), shown(quiet=arguments.quiet) as progress:
        import trio

        store = image_flags.store_of(arguments)
        remote = image_flags.remote(arguments)
        for name, destination in _names(arguments, store):
            push = functools.partial(image.push, store, name, destination, remote=remote, progress=progress)
            digest = trio.run(push)
            print(f"{printable(name)} {digest}" if arguments.all_tags and not arguments.quiet else digest, flush=True)
    return 0


def _names(arguments: Namespace, store: Store) -> list[tuple[str, str | None]]:
    """The images to send, and the names to send them as."""
    if not arguments.all_tags:
        return [(arguments.image, arguments.destination)]
    asked = reference.parse(arguments.image)
    to = None if arguments.destination is None else reference.parse(arguments.destination)
    for one, text in ((asked, arguments.image), (to, arguments.destination)):
        if one is not None and (one.digest is not None or text.endswith(f":{one.tag}")):
            raise Malformed("pushing", text, "it names one image", hint="--all-tags takes names without a tag")
    found: list[tuple[str, str | None]] = []
    for image_ in store.list_images():
        try:
            known = reference.parse(image_.name)
        except Malformed:
            continue
        if known.name == asked.name and known.tag is not None:
            found.append((image_.name, None if to is None else f"{to.name}:{known.tag}"))
    if not found:
        raise NotFound("pushing", asked.name, "it has no tag in the store")
    return found
