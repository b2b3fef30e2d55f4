"""`unionfs load`: load images from an archive of `docker save`, podman, skopeo or `unionfs save`."""

from __future__ import annotations

import sys

from layers import archive
from unionfs.cli import image_flags, notes
from unionfs.cli.arguments import Parser
from unionfs.cli.errors import CommandError
from unionfs.cli.progress import shown
from unionfs.containers import images
from unionfs.printable import printable


def main(argv: list[str]) -> int:
    """Run `unionfs load ARGV`."""
    parser = Parser(
        "load",
        "Load the images of an archive in Docker's or OCI's format, compressed or not, from FILE or stdin.",
        image_flags.EPILOG,
    )
    parser.add_argument("-i", "--input", metavar="FILE", help="default: stdin")
    parser.add_argument("-t", "--tag", metavar="NAME", default="", help="the name of the image, if there is only one")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    image_flags.add_limits(parser)
    image_flags.add_root(parser)
    image_flags.add_debug(parser)
    arguments = parser.parse(argv)
    if arguments.input is None and sys.stdin.isatty():
        raise CommandError("loading failed: stdin is a terminal", hint="unionfs load -i FILE", status=2)

    def body() -> int:
        with images.failures(), shown(quiet=arguments.quiet) as progress:
            source = sys.stdin.buffer if arguments.input in (None, "-") else open(arguments.input, "rb")  # noqa: SIM115
            with source:
                loaded = archive.load(
                    image_flags.store_of(arguments),
                    source,
                    name=arguments.tag,
                    options=image_flags.options(arguments),
                    progress=progress,
                    warn=lambda text: notes.warn(f"note: {text}"),
                )
        for one in loaded:
            print(f"loaded {printable(one.name or one.digest)}", flush=True)
        return 0

    return images.with_ids(body)
