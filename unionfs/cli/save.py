"""`unionfs save`: write images to an archive that docker, podman, skopeo and `unionfs load` read."""

from __future__ import annotations

import argparse
import sys
from typing import Final

from layers import archive
from unionfs.cli import image_flags
from unionfs.cli.arguments import Parser
from unionfs.cli.errors import CommandError
from unionfs.cli.progress import shown
from unionfs.containers import images
from unionfs.output_file import OutputFile

_DESCRIPTION: Final = """\
Write images to one archive, in Docker's and OCI's format at once, to FILE or stdout.

--format squashfs writes one image as a squashfs instead, with its configuration inside: `unionfs run FILE` runs it
without unpacking anything, and equal images give equal files."""

SQUASHFS: Final = "squashfs"


def main(argv: list[str]) -> int:
    """Run `unionfs save ARGV`."""
    parser = Parser("save", _DESCRIPTION, image_flags.EPILOG)
    parser.usage = "unionfs save [OPTIONS] IMAGE...\n       unionfs save --format squashfs [OPTIONS] IMAGE FILE"
    parser.add_argument("images", metavar="IMAGE", nargs="+")
    parser.add_argument("-o", "--output", metavar="FILE", help="default: stdout")
    parser.add_argument(
        "--format",
        choices=("docker-archive", "oci-archive", SQUASHFS),
        help=f"{SQUASHFS}: see above; the others have no effect, as the archive has both formats",
    )
    parser.add_argument("--layers", action="store_true", help="with squashfs: keep the layers separate in the file")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    image_flags.add_root(parser)
    image_flags.add_debug(parser)
    arguments = parser.parse(argv)
    if arguments.format == SQUASHFS:
        return images.with_ids(lambda: _save_squashfs(arguments))
    if arguments.layers:
        parser.error("--layers needs --format squashfs")
    with images.failures(), shown(quiet=arguments.quiet) as progress:
        store = image_flags.store_of(arguments)
        if arguments.output in (None, "-"):
            if sys.stdout.isatty():
                raise CommandError("saving failed: stdout is a terminal", hint="unionfs save -o FILE", status=2)
            with images.writing_to("save", "stdout"):
                archive.save(store, arguments.images, sys.stdout.buffer, progress)
                sys.stdout.buffer.flush()
            return 0
        with images.writing_to("save", arguments.output), OutputFile(arguments.output) as written:
            archive.save(store, arguments.images, written.file, progress)
    return 0


def _save_squashfs(arguments: argparse.Namespace) -> int:
    """Preconditions: within `images.with_ids`."""
    from layers import save_squashfs

    names = [*arguments.images, *([arguments.output] if arguments.output else ())]
    if len(names) != 2 or names[1] == "-":
        hint = "unionfs save --format squashfs IMAGE FILE"
        raise CommandError("save: a squashfs has one image, and is a file", hint=hint, status=2)
    with images.failures(), shown(quiet=arguments.quiet) as progress:
        store, options = image_flags.store_of(arguments), image_flags.options(arguments)
        with images.writing_to("save", names[1]), OutputFile(names[1]) as written:
            save_squashfs.save(
                store, names[0], written.path, separate=arguments.layers, options=options, progress=progress
            )
    return 0
