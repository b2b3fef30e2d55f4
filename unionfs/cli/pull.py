"""`unionfs pull`: fetch images from a registry and unpack their layers."""

from __future__ import annotations

import functools
from argparse import Namespace

from layers import image, reference
from layers.errors import Malformed
from layers.image import Remote
from layers.manifest import parse_platform
from unionfs.cli import image_flags, remote_flags
from unionfs.cli.arguments import Parser
from unionfs.cli.progress import shown
from unionfs.containers import images
from unionfs.printable import printable

_DESCRIPTION = """\
Fetch images from their registry and unpack their layers, so that they can be run.

IMAGE is [REGISTRY[:PORT]/]NAME[:TAG][@DIGEST]; the default registry is docker.io, the default tag `latest`. Layers that
are in the store are not fetched again, and an interrupted pull is resumed."""


def main(argv: list[str]) -> int:
    """Run `unionfs pull ARGV`."""
    parser = Parser("pull", _DESCRIPTION, image_flags.EPILOG)
    parser.add_argument("images", metavar="IMAGE", nargs="+")
    parser.add_argument(
        "--platform",
        metavar="OS/ARCH[/VARIANT]",
        help="which image of several platforms (default: this machine's platform)",
    )
    parser.add_argument(
        "--all-platforms", action="store_true", help="store the images of all platforms, to push them elsewhere"
    )
    parser.add_argument("-a", "--all-tags", action="store_true", help="pull all tags of the repository IMAGE")
    parser.add_argument("-q", "--quiet", action="store_true", help="print only the full names")
    remote_flags.add(parser)
    image_flags.add_limits(parser)
    image_flags.add_root(parser)
    image_flags.add_debug(parser)
    arguments = parser.parse(argv)
    with images.failures():
        remote = image_flags.remote(arguments)

    def body() -> int:
        import trio

        with images.failures(), shown(quiet=arguments.quiet) as progress:
            for text in _names(arguments, remote):
                pull = functools.partial(
                    image.pull,
                    image_flags.store_of(arguments),
                    text,
                    platform=parse_platform(arguments.platform) if arguments.platform else None,
                    all_platforms=arguments.all_platforms,
                    remote=remote,
                    options=image_flags.options(arguments),
                    progress=progress,
                )
                pulled = trio.run(pull)
                if not arguments.quiet:
                    status = "Downloaded newer image" if pulled.new else "Image is up to date"
                    print(f"Digest: {pulled.digest}\nStatus: {status} for {printable(pulled.reference.familiar)}")
                print(printable(str(pulled.reference)), flush=True)
        return 0

    return images.with_ids(body)


def _names(arguments: Namespace, remote: Remote) -> list[str]:
    if not arguments.all_tags:
        return list(arguments.images)
    import trio

    found = []
    for text in arguments.images:
        asked = reference.parse(text)
        if asked.digest is not None or asked.tag != reference.DEFAULT_TAG or text.endswith(f":{asked.tag}"):
            raise Malformed("pulling", text, "it names one image", hint="--all-tags takes a name without a tag")
        found += [f"{asked.name}:{tag}" for tag in trio.run(image.tags, text, remote)]
    return found
