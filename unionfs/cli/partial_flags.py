"""The flag that says when files are copied up without all of their data."""

from __future__ import annotations

from unionfs.cli.arguments import Parser, size_in_bytes


def add_partial_from(parser: Parser) -> None:
    """Add --partial-from, for all verbs that make a union."""
    parser.add_argument(
        "--partial-from",
        metavar="SIZE",
        type=size_in_bytes,
        default=0,
        help="of a lower file of at least SIZE (16M is a good value) copy only the blocks that are written, and of any "
        "of at least 64K no data if only its attributes or names change; other programs cannot read such files in the "
        "upper directory until `unionfs complete`; 0: copy files whole (default: 0)",
    )
