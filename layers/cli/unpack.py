"""`layers unpack`: a layer's tar becomes a directory."""

from __future__ import annotations

from layers.attributes import AUFS, OVERLAY
from layers.cli import subjects
from layers.cli.command import Parser


def main(argv: list[str]) -> int:
    """Run `layers unpack ARGV`."""
    parser = Parser(
        "unpack", "Unpack a layer's tar, compressed or not, into a new directory. What is dangerous is refused."
    )
    parser.add_argument("tar", metavar="TAR", help="- for stdin")
    parser.add_argument("directory", metavar="DIR", help="is made")
    parser.add_argument("--dialect", choices=(AUFS, OVERLAY), default=AUFS, help="of the marks (default: aufs)")
    parser.add_argument(
        "--note-owners", action="store_true", help="keep owners, modes and devices beside the files, in an attribute"
    )
    arguments = parser.parse_args(argv)
    options = subjects.options(dialect=arguments.dialect, noted=arguments.note_owners)
    subjects.unpack_tar(arguments.tar, arguments.directory, options)
    return 0
