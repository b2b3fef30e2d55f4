"""`layers pack`: write a directory as a layer's tar; equal trees give equal bytes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from layers.cli import subjects
from layers.cli.command import Parser
from layers.compression import WRITABLE
from layers.errors import Malformed
from layers.pack import layer_items, pack, source_date_epoch
from layers.tree import LayerTrees
from unionfs.output_file import OutputFile
from unionfs.printable import printable_line


def main(argv: list[str]) -> int:
    """Run `layers pack ARGV`."""
    parser = Parser(
        "pack",
        "Write a layer directory as a tar with OCI's whiteouts. Times after SOURCE_DATE_EPOCH are set to it.\n"
        "Prints the digest of the tar, and that of the uncompressed tar (the diff id). A tar, or an image of\n"
        "one layer, is packed again: sorted, and with another compression.",
    )
    parser.add_argument("layer", metavar="LAYER|IMAGE")
    parser.add_argument("-o", "--output", metavar="TAR", required=True, help="- for stdout")
    parser.add_argument("--compression", choices=WRITABLE, default="gzip", help="default: gzip")
    parser.add_argument("--json", action="store_true", help="print JSON")
    subjects.add_root(parser)
    arguments = parser.parse_args(argv)
    subject = subjects.parse(arguments.layer)
    with (
        subjects.directories(subject, arguments) as found,
        LayerTrees() as branches,
        output(arguments.output) as sink,
    ):
        items = layer_items(branches.open(subjects.one_directory(found, subject)))
        packed = pack(items, sink, arguments.compression, epoch=source_date_epoch(), on_shrunk=note_shrunk)
    if arguments.output != "-":
        print(json.dumps(packed._asdict(), indent=1) if arguments.json else f"{packed.digest} {packed.diff_id}")
    return 0


def note_shrunk(path: str) -> None:
    """Print a note that a file became shorter while it was packed."""
    note = f"layers: note: {path} became shorter while it was read: the rest is filled with zeros"
    print(printable_line(note), file=sys.stderr)


@contextmanager
def output(path: str) -> Iterator[IO[bytes]]:
    """A file that replaces the one at `path` when the block succeeds; or stdout for `-`."""
    if path == "-":
        if sys.stdout.isatty():
            raise Malformed("writing a tar", "stdout", "it is a terminal", hint="name a file: -o LAYER.tar")
        yield sys.stdout.buffer
        return
    with OutputFile(path) as written:
        yield written.file
