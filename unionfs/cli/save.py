"""`unionfs save`: write images to an archive that docker, podman, skopeo and `unionfs load` read."""

from __future__ import annotations

import sys

from layers import archive
from unionfs.cli import image_flags
from unionfs.cli.arguments import Parser
from unionfs.cli.errors import CommandError
from unionfs.cli.progress import shown
from unionfs.containers import images
from unionfs.output_file import OutputFile


def main(argv: list[str]) -> int:
    """Run `unionfs save ARGV`."""
    parser = Parser(
        "save",
        "Write images to one archive, in Docker's and OCI's format at once, to FILE or stdout.",
        image_flags.EPILOG,
    )
    parser.add_argument("images", metavar="IMAGE", nargs="+")
    parser.add_argument("-o", "--output", metavar="FILE", help="default: stdout")
    parser.add_argument(
        "--format",
        choices=("docker-archive", "oci-archive"),
        help="no effect, as in podman: the archive has both formats",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    image_flags.add_root(parser)
    image_flags.add_debug(parser)
    arguments = parser.parse(argv)
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
