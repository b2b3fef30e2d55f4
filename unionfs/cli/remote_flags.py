"""Flags of the verbs that use a registry. Does not import the HTTP modules."""

from __future__ import annotations

import argparse

from unionfs.cli.arguments import Parser


def add(parser: Parser) -> None:
    """Add the flags; `image_flags.remote` reads them."""
    option = parser.add_argument
    option(
        "--tls-verify",
        metavar="BOOL",
        type=_boolean,
        nargs="?",
        const=True,
        help="false: accept any certificate, and plain HTTP (default: as in registries.conf, else true)",
    )
    option(
        "--cert-dir",
        metavar="DIR",
        help="a directory with CA certificates (*.crt) and a client certificate (*.cert, *.key)",
    )
    option("--creds", metavar="USER[:PASSWORD]", help="use this password instead of a stored one")
    option("--authfile", metavar="FILE", help="the file with user names and passwords")
    option("--mirror", metavar="HOST", action="append", default=[], help="try this mirror first; may be repeated")


def _boolean(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
