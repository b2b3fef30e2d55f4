"""`layers convert`: write a layer with its marks in another dialect."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from layers import tar_directory
from layers.attributes import AUFS, OVERLAY
from layers.cli import subjects
from layers.cli.command import Parser
from layers.cli.pack import note_shrunk, output
from layers.compression import WRITABLE
from layers.pack import layer_items, pack, source_date_epoch
from layers.tree import LayerTree, LayerTrees
from unionfs.trees.remove import remove_path

OCI = "oci"
_DESCRIPTION = """\
Write a layer with its marks in another dialect: aufs (.wh. files) and overlay (devices 0:0, attributes) are
directories, oci is a tar. Marks of every dialect are understood. An image of several layers becomes a directory with
one entry for each, numbered from the bottom: 0, 1, 2 ... (0.tar, 1.tar ...)."""


def main(argv: list[str]) -> int:
    """Run `layers convert ARGV`."""
    parser = Parser("convert", _DESCRIPTION)
    parser.add_argument("--to", required=True, choices=(AUFS, OVERLAY, OCI))
    parser.add_argument("layer", metavar="LAYER|IMAGE")
    parser.add_argument("output", metavar="OUTPUT", help="a new directory; with --to oci a tar, - for stdout")
    parser.add_argument("--compression", choices=WRITABLE, default="none", help="of a tar (default: none)")
    subjects.add_root(parser)
    arguments = parser.parse_args(argv)
    subject = subjects.parse(arguments.layer)
    with subjects.directories(subject, arguments) as found, LayerTrees() as branches:
        if len(found) == 1:
            _convert(branches.open(found[0]), arguments.output, arguments)
            return 0
        parent = Path(arguments.output)
        parent.mkdir()
        try:
            for number, directory in enumerate(reversed(found)):
                name = f"{number}.tar" if arguments.to == OCI else str(number)
                _convert(branches.open(directory), os.fspath(parent / name), arguments)
        except BaseException:
            remove_path(os.fspath(parent))
            raise
    return 0


def _convert(branch: LayerTree, output_: str, arguments: argparse.Namespace) -> None:
    items = layer_items(branch)
    if arguments.to == OCI:
        with output(output_) as sink:
            packed = pack(items, sink, arguments.compression, epoch=source_date_epoch(), on_shrunk=note_shrunk)
        if output_ != "-":
            print(packed.digest)
        return
    tar_directory.unpack_items(items, output_, tar_directory.own_options(dialect=arguments.to))
