"""`unionfs snapshotter`: serve containerd as a snapshotter whose snapshots are unions."""

from __future__ import annotations

import os
from argparse import Namespace
from typing import Final

from unionfs.cli.arguments import Parser
from unionfs.cli.errors import CommandError

DEFAULT_ROOT: Final = "/var/lib/unionfs-snapshotter"

_DESCRIPTION: Final = """\
Serve containerd as a snapshotter at a socket, in the foreground, until SIGTERM or SIGINT.

Configure it in containerd's config.toml:

  [proxy_plugins.unionfs]
    type = "snapshot"
    address = "/run/unionfs/snapshotter.sock"

containerd mounts through mount.fuse3(8), of the package fuse3. docs/kubernetes.md shows whole configurations."""

_EPILOG: Final = """\
example:
  unionfs snapshotter --address /run/unionfs/snapshotter.sock &
  ctr image pull --snapshotter unionfs docker.io/library/debian:12
  ctr run --snapshotter unionfs --rm -t docker.io/library/debian:12 box bash"""


def main(argv: list[str]) -> int:
    """Run `unionfs snapshotter ARGV`."""
    arguments = _parser().parse(argv)
    try:
        import grpc as _grpc  # noqa: F401 - tested here, for an error with a hint
        from google.protobuf import descriptor_pb2 as _protobuf  # noqa: F401
    except ImportError as error:
        hint = "pip install 'unionfs[snapshotter]'"
        raise CommandError(f"snapshotter failed: no Python module {error.name}", hint=hint) from error
    _start_logging(arguments)
    import sqlite3

    from unionfs.snapshotter.server import serve
    from unionfs.snapshotter.values import SnapshotError

    try:
        serve(arguments.address, arguments.root, arguments.mount_program)
    except SnapshotError as error:
        raise CommandError(f"snapshotter failed: {error}") from error
    except sqlite3.Error as error:
        path = os.path.join(arguments.root, "snapshots.db")
        raise CommandError(f"snapshotter failed: {path}: {error}") from error
    return 0


def _parser() -> Parser:
    parser = Parser("snapshotter", _DESCRIPTION, _EPILOG)
    parser.acts_as_owner = False  # it serves with the rights of its starter
    add = parser.add_argument
    add("--address", metavar="SOCKET", required=True, help="the socket to listen at; its directory is made if missing")
    add("--root", metavar="DIR", default=DEFAULT_ROOT, help=f"the directory of the snapshots (default: {DEFAULT_ROOT})")
    add(
        "--mount-program",
        metavar="PROGRAM",
        default="unionfs",
        help="the program that mount.fuse3 runs: a name in containerd's PATH, or an absolute path (default: unionfs)",
    )
    add("--log", metavar="FILE", help="append the log to FILE (default: stderr)")
    add("--debug", action="store_true", help="log every call, and show tracebacks")
    return parser


def _start_logging(arguments: Namespace) -> None:
    from unionfs import log_lines

    log_lines.start(debug=arguments.debug, path=arguments.log)
