"""`layers convert`: the same layer with its marks in another dialect."""

from __future__ import annotations

import os
import tempfile

from layers.attributes import AUFS, OVERLAY
from layers.cli import subjects
from layers.cli.command import Parser
from layers.cli.pack import output
from layers.compression import WRITABLE
from layers.pack import layer_items, pack, source_date_epoch
from layers.tree import Branches


def main(argv: list[str]) -> int:
    """Run `layers convert ARGV`."""
    parser = Parser(
        "convert",
        "Write a layer with its marks in another dialect: aufs (.wh. files) and overlay (devices 0:0, attributes) are\n"
        "directories, oci is a tar. Marks of every dialect are understood.",
    )
    parser.add_argument("--to", required=True, choices=(AUFS, OVERLAY, "oci"))
    parser.add_argument("layer", metavar="LAYER")
    parser.add_argument("output", metavar="OUTPUT", help="a new directory; with --to oci a tar, - for stdout")
    parser.add_argument("--compression", choices=WRITABLE, default="none", help="of a tar (default: none)")
    subjects.add_root(parser)
    arguments = parser.parse_args(argv)
    subject = subjects.parse(arguments.layer)
    with subjects.directories(subject, arguments) as found, Branches() as branches:
        items = layer_items(branches.open(subjects.one_directory(found, subject)))
        if arguments.to == "oci":
            with output(arguments.output) as sink:
                packed = pack(items, sink, arguments.compression, epoch=source_date_epoch())
            if arguments.output != "-":
                print(packed.digest)
            return 0
        with tempfile.NamedTemporaryFile(
            prefix="layers-", dir=os.path.dirname(os.path.abspath(arguments.output))
        ) as tar:
            pack(items, tar, "none")
            tar.flush()
            subjects.unpack_tar(tar.name, arguments.output, subjects.options(dialect=arguments.to))
    return 0
