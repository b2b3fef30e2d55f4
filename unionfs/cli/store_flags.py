"""The flags of stores: --root, the store of containers and images; --image-store, further stores of images, which
belong to other users and are only read."""

from __future__ import annotations

import argparse
import os

from unionfs.cli.arguments import Parser


def add_root(parser: Parser) -> None:
    parser.add_argument("--root", metavar="DIR", help="the store of containers (default: $XDG_DATA_HOME/unionfs)")


def add_image_stores(parser: Parser) -> None:
    parser.add_argument(
        "--image-store",
        metavar="DIR",
        action="append",
        help="a further store, whose images are used where they are and never changed; may be repeated "
        "(UNIONFS_IMAGE_STORES: separated by colons)",
    )


def image_stores(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The directories of the further stores; each once, without the store itself."""
    own = os.path.abspath(arguments.root) if arguments.root else None
    named = dict.fromkeys(map(os.path.abspath, arguments.image_store or ()))
    return tuple(directory for directory in named if directory != own)
