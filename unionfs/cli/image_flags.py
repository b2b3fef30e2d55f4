"""Flags of the verbs on images: the store, registries, limits; and printing of images."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Sequence
from typing import Any, Final

from layers.attributes import Options
from layers.cli.showing import aligned
from layers.config import Settings
from layers.credentials import Credentials
from layers.endpoints import Wishes
from layers.errors import EXIT_CODES
from layers.image import Remote
from layers.limits import Limits
from layers.store import Store
from unionfs.cli import store_flags
from unionfs.cli.arguments import Parser, size_in_bytes
from unionfs.cli.errors import CommandError
from unionfs.containers import images
from unionfs.printable import printable_line
from unionfs.store_files import default_root

EPILOG: Final = EXIT_CODES


def options(arguments: argparse.Namespace) -> Options:
    """The options of unpacking, by our ids and the command line. Preconditions: within `images.with_ids`."""
    size = getattr(arguments, "max_layer_size", None)
    limits = Limits() if size is None else Limits(max_bytes=size, max_ratio=None)
    return Options(owners=images.owners_here(), limits=limits)


def add_root(parser: Parser) -> None:
    parser.add_argument(
        "--root", metavar="DIR", help="the store of images and containers (default: $XDG_DATA_HOME/unionfs)"
    )
    parser.set_defaults(root=default_root())
    store_flags.add_image_stores(parser)


def add_debug(parser: Parser) -> None:
    parser.add_argument("--debug", action="store_true", help="show tracebacks")


def store_of(arguments: argparse.Namespace) -> Store:
    return Store(arguments.root, store_flags.image_stores(arguments))


def remote(arguments: argparse.Namespace) -> Remote:
    """The values of the flags of `remote_flags`."""
    if arguments.authfile:
        os.environ["REGISTRY_AUTH_FILE"] = arguments.authfile
    credentials = None
    if arguments.creds:
        name, colon, password = arguments.creds.partition(":")
        credentials = Credentials(name, password if colon else ask_password())
    wishes = Wishes(arguments.tls_verify, arguments.cert_dir, tuple(arguments.mirror))
    return Remote(wishes, credentials, warn=warn)


@functools.cache
def warn(text: str) -> None:
    """Print a warning, once: several images and mirrors can give the same one."""
    print(printable_line(f"unionfs: warning: {text}"), file=sys.stderr)


def ask_password() -> str:
    """Read a password from the terminal without echo."""
    import getpass

    try:
        return getpass.getpass("Password: ", sys.stderr)
    except EOFError:
        raise CommandError("login failed: no password given", hint="--password-stdin reads it from a pipe") from None


def add_limits(parser: Parser) -> None:
    parser.add_argument(
        "--max-layer-size",
        metavar="SIZE",
        type=size_in_bytes,
        help="refuse larger layers, and remove the limit of the compression ratio; 10G, 500M (default: 64G)",
    )


def print_table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]], *, heading: bool = True) -> None:
    """Print rows in aligned columns."""
    lines = [head, *rows] if heading else list(rows)
    if lines:
        print("\n".join(map(printable_line, aligned(head, lines, gap="   "))))


def settings_json(settings: Settings) -> dict[str, Any]:
    """The settings of an image, with Docker's field names."""
    return {
        "User": settings.user,
        "Env": list(settings.env),
        "Entrypoint": settings.entrypoint,
        "Cmd": settings.cmd,
        "WorkingDir": settings.working_dir,
        "Volumes": list(settings.volumes),
        "ExposedPorts": list(settings.exposed_ports),
        "Labels": dict(settings.labels),
        "StopSignal": settings.stop_signal,
    }
