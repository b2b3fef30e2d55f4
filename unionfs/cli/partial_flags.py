"""The flag that says when files are copied up without all of their data."""

from __future__ import annotations

from unionfs.cli.arguments import Parser, size_in_bytes


def add_partial_from(parser: Parser, *, default: int | None = 0, by_default: str = "0") -> None:
    """Add --partial-from. `by_default` says in the help what `default` means. Directories that others may change or
    read are not for it, so only verbs that know their directories have another default than 0."""
    parser.add_argument(
        "--partial-from",
        metavar="SIZE",
        type=size_in_bytes,
        default=default,
        help="of a lower file of at least SIZE (16M is a good value) copy only the blocks that are written, and of any "
        "of at least 64K no data if only its attributes or names change; other programs cannot read such files in the "
        f"upper directory until `unionfs complete`; 0: copy files whole (default: {by_default})",
    )
