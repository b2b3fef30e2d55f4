"""Flags of the verbs that mount a union or make containers: transport, marks, durability, partial files, keeper."""

from __future__ import annotations

from unionfs.cli.arguments import Parser, size_in_bytes
from unionfs.core.options import DURABILITIES, WHITEOUT_FORMATS
from unionfs.fuse.options import DEFAULT_TRANSPORT, TRANSPORTS


def add_transport(parser: Parser) -> None:
    parser.add_argument(
        "--transport", choices=tuple(TRANSPORTS), default=DEFAULT_TRANSPORT, help=f"default: {DEFAULT_TRANSPORT}"
    )


def add_upper(parser: Parser) -> None:
    """Add --whiteout and --durability, the ways in which changes are written to the upper."""
    add = parser.add_argument
    add("--whiteout", choices=WHITEOUT_FORMATS, default="aufs", help="the format of whiteouts (default: aufs)")
    add(
        "--durability",
        choices=DURABILITIES,
        default="normal",
        help="strict: a copied-up file is written to the device before it is shown; volatile: fsync does nothing "
        "(default: normal)",
    )


def add_partial_from(parser: Parser, *, default: int | None = 0, by_default: str = "0") -> None:
    """Add --partial-from. `by_default`: the text for `default` in the help. If other programs change the lowers or read
    the upper, the value must be 0; so only verbs that know their directories have another default."""
    parser.add_argument(
        "--partial-from",
        metavar="SIZE",
        type=size_in_bytes,
        default=default,
        help="of a lower file of at least SIZE (16M is a good value) copy only the blocks that are written, and of any "
        "of at least 64K no data if only its attributes or names change; other programs cannot read such files in the "
        f"upper directory until `unionfs complete`; 0: copy files whole (default: {by_default})",
    )


def add_no_keeper(parser: Parser, consequence: str) -> None:
    """Add --no-keeper. `consequence`: of a daemon's death, or where it is documented."""
    parser.add_argument(
        "--no-keeper",
        action="store_true",
        help=f"leave no keeper, which starts another daemon if the union's daemon dies{consequence}",
    )
