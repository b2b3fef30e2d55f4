"""Flags of the verbs that talk to a registry. Imports nothing that only talking to one needs."""

from __future__ import annotations

import argparse

from unionfs.cli.arguments import Parser


def add(parser: Parser) -> None:
    """Add them; `image_flags.remote` reads them."""
    option = parser.add_argument
    option(
        "--tls-verify",
        metavar="BOOL",
        type=_boolean,
        nargs="?",
        const=True,
        help="false: take any certificate, and plain HTTP too (default: as registries.conf says, else true)",
    )
    option(
        "--cert-dir", metavar="DIR", help="a directory with authorities (*.crt) and our own certificate (*.cert, *.key)"
    )
    option("--creds", metavar="USER[:PASSWORD]", help="instead of what `unionfs login` keeps")
    option("--authfile", metavar="FILE", help="the file that keeps names and passwords")
    option("--mirror", metavar="HOST", action="append", default=[], help="ask there first; may be repeated")


def _boolean(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
