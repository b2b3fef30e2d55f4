"""`layers squash`: merge several layers into one."""

from __future__ import annotations

import json
from contextlib import ExitStack

from layers import make_image, reference, tar_directory
from layers.cli import subjects
from layers.cli.command import Parser
from layers.cli.pack import note_shrunk, output
from layers.cli.subjects import IMAGE
from layers.compression import WRITABLE
from layers.pack import merged_items, pack, source_date_epoch
from layers.store import Store
from layers.tree import LayerTrees


def main(argv: list[str]) -> int:
    """Run `layers squash ARGV`."""
    parser = Parser(
        "squash",
        "Merge several layers into one: of an image make a new image (-t); of any layers, the topmost first, write a\n"
        "tar (-o) with their merged tree, without whiteouts.",
    )
    parser.add_argument("layers", metavar="LAYER|IMAGE", nargs="+")
    parser.add_argument("-o", "--output", metavar="TAR", help="- for stdout")
    parser.add_argument("-t", "--tag", metavar="NAME", help="the name of the new image")
    parser.add_argument(
        "--keep", metavar="N", type=int, default=0, help="leave the N lowest layers of an image as they are"
    )
    parser.add_argument("-m", "--message", metavar="TEXT", default="", help="for the history of the new image")
    parser.add_argument("--compression", choices=WRITABLE, default="gzip", help="default: gzip")
    parser.add_argument("--json", action="store_true", help="print JSON")
    subjects.add_root(parser)
    arguments = parser.parse_args(argv)
    found = [subjects.parse(text) for text in arguments.layers]
    if (arguments.output is None) == (arguments.tag is None):
        parser.error("either -o TAR or -t NAME is needed")
    if arguments.tag is not None:
        if len(found) != 1 or found[0].kind != IMAGE:
            parser.error("-t NAME is for one image")
        wanted = make_image.ImageOptions(
            name=str(reference.parse(arguments.tag)), message=arguments.message, compression=arguments.compression
        )
        options = tar_directory.own_options()
        new = make_image.squash(
            Store(arguments.root),
            found[0].text,
            wanted,
            keep=arguments.keep,
            options=options,
            on_shrunk=note_shrunk,
        )
        print(json.dumps({"digest": new.digest} | new.layer._asdict(), indent=1) if arguments.json else new.digest)
        return 0
    with ExitStack() as stack:
        directories = [
            path for subject in found for path in stack.enter_context(subjects.directories(subject, arguments))
        ]
        branches = stack.enter_context(LayerTrees())
        with output(arguments.output) as sink:
            items = merged_items(branches.view(directories))
            packed = pack(items, sink, arguments.compression, epoch=source_date_epoch(), on_shrunk=note_shrunk)
    if arguments.output != "-":
        print(json.dumps(packed._asdict(), indent=1) if arguments.json else f"{packed.digest} {packed.diff_id}")
    return 0
