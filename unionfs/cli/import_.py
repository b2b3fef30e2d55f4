"""`unionfs import`: make an image of one layer from a root filesystem's tar."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from layers import make_image, reference
from layers.compression import Readable
from layers.manifest import parse_platform
from unionfs.cli import image_flags
from unionfs.cli.arguments import Parser
from unionfs.cli.progress import shown
from unionfs.containers import images

_EPILOG = f"""\
example:
  mmdebstrap --variant=minbase bookworm | unionfs import - debian:mine

{image_flags.EPILOG}"""


def main(argv: list[str]) -> int:
    """Run `unionfs import ARGV`."""
    parser = Parser(
        "import",
        "Make an image from the tar of a root filesystem, compressed (gzip, zstd, xz, bzip2) or not; print its id.",
        _EPILOG,
    )
    parser.add_argument("file", metavar="FILE|URL", help="a tar, - for stdin, or http(s)://...")
    parser.add_argument("name", metavar="NAME", nargs="?", help="[REGISTRY/]NAME[:TAG]")
    parser.add_argument("-m", "--message", metavar="TEXT", default="", help="for the image's history")
    parser.add_argument(
        "-c",
        "--change",
        metavar="INSTRUCTION",
        action="append",
        default=[],
        help="as in a Dockerfile: CMD, ENV, USER ...",
    )
    parser.add_argument(
        "--platform", metavar="OS/ARCH[/VARIANT]", help="the platform of its programs (default: this machine's)"
    )
    parser.add_argument("--compression", choices=("gzip", "zstd", "none"), default="gzip", help="default: gzip")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    image_flags.add_limits(parser)
    image_flags.add_root(parser)
    image_flags.add_debug(parser)
    arguments = parser.parse(argv)

    def body() -> int:
        with images.failures(), shown(quiet=arguments.quiet) as progress:
            wanted = make_image.ImageOptions(
                name=str(reference.parse(arguments.name)) if arguments.name else "",
                message=arguments.message,
                changes=arguments.change,
                compression=arguments.compression,
                platform=parse_platform(arguments.platform) if arguments.platform else None,
            )
            with _opened(arguments.file) as source:
                made = make_image.import_tar(
                    image_flags.store_of(arguments),
                    source,
                    wanted,
                    options=image_flags.options(arguments),
                    progress=progress,
                )
        print(made.id, flush=True)
        return 0

    return images.with_ids(body)


@contextmanager
def _opened(text: str) -> Iterator[Readable]:
    """Open the tar. Raises: LayerError if a server does not send it."""
    if text == "-":
        yield sys.stdin.buffer
    elif text.startswith(("http://", "https://")):
        from layers.http_file import opened

        with opened(text) as body:
            yield body
    else:
        with open(text, "rb") as file:
            yield file
