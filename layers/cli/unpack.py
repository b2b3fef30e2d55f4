"""`layers unpack`: unpack a layer's tar, or the merged layers of an image, into a directory."""

from __future__ import annotations

from layers import tar_directory
from layers.attributes import AUFS, OVERLAY
from layers.cli import subjects
from layers.cli.command import Parser
from layers.cli.subjects import TAR, Subject
from layers.errors import Malformed
from layers.pack import merged_items
from layers.tree import LayerTrees

FINGERPRINTS_SUFFIX = ".fingerprints"
"""The fingerprints of DIR are in the file DIR.fingerprints."""


def main(argv: list[str]) -> int:
    """Run `layers unpack ARGV`."""
    parser = Parser(
        "unpack",
        "Unpack a layer's tar, compressed or not, or the merged layers of an image, into a new directory. Dangerous\n"
        "entries are refused.",
    )
    parser.add_argument("layer", metavar="TAR|IMAGE", help="- for a tar from stdin")
    parser.add_argument("directory", metavar="DIR", help="the new directory")
    parser.add_argument(
        "--dialect", choices=(AUFS, OVERLAY), default=AUFS, help="the dialect of the marks (default: aufs)"
    )
    parser.add_argument(
        "--note-owners",
        action="store_true",
        help="store owners, modes and devices in an extended attribute of the files",
    )
    parser.add_argument(
        "--fingerprints",
        action="store_true",
        help=f"write DIR{FINGERPRINTS_SUFFIX}, with which `layers verify DIR` finds changes",
    )
    subjects.add_root(parser)
    arguments = parser.parse_args(argv)
    options = tar_directory.own_options(dialect=arguments.dialect, noted=arguments.note_owners)
    subject = Subject(TAR, "-") if arguments.layer == "-" else subjects.parse(arguments.layer)
    into = arguments.directory.rstrip("/") or "/"
    record = into + FINGERPRINTS_SUFFIX if arguments.fingerprints else None
    if subject.kind == TAR:
        tar_directory.unpack_tar(subject.text, into, options, record)
        return 0
    if subject.kind == subjects.DIRECTORY:
        raise Malformed("unpacking", subject.text, "it is a directory", hint="layers convert, or cp -a")
    with subjects.directories(subject, arguments) as found, LayerTrees() as branches:
        tar_directory.unpack_items(merged_items(branches.view(found)), into, options, record)
    return 0
