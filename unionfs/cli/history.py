"""`unionfs history`: list the steps by which an image was made."""

from __future__ import annotations

import json

from layers import lookup
from layers.cli import showing
from unionfs.cli import image_flags
from unionfs.cli.arguments import Parser
from unionfs.containers import images
from unionfs.printable import printable_line


def main(argv: list[str]) -> int:
    """Run `unionfs history ARGV`."""
    parser = Parser("history", "List the steps by which an image was made, the latest first.", image_flags.EPILOG)
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("-q", "--quiet", action="store_true", help="print digests of layers only")
    parser.add_argument("--no-trunc", action="store_true", help="whole commands")
    image_flags.add_root(parser)
    image_flags.add_debug(parser)
    arguments = parser.parse(argv)
    with images.failures():
        store = image_flags.store_of(arguments)
        _, item, config = lookup.read(store, store.find(arguments.image).descriptor)
    layers = iter(item.layers)
    steps = []
    for entry in config.history:
        layer = None if entry.empty_layer else next(layers, None)
        said = {"digest": layer.digest if layer else "", "size": layer.size if layer else 0}
        steps.append(entry._asdict() | said)
    # Tools may write layers without a history.
    steps += [
        {"created": "", "created_by": "", "comment": "", "digest": left.digest, "size": left.size} for left in layers
    ]
    steps.reverse()
    if arguments.json:
        print(json.dumps(steps, indent=1))
        return 0
    if arguments.quiet:
        print("\n".join(step["digest"] or "-" for step in steps))
        return 0
    width = 10_000 if arguments.no_trunc else 60
    rows = [
        (
            step["digest"].partition(":")[2][:12] or "-",
            printable_line(step["created"][:19]),
            printable_line(" ".join(step["created_by"].split()))[:width],
            showing.human(step["size"]),
            printable_line(step["comment"])[:width],
        )
        for step in steps
    ]
    image_flags.print_table(("LAYER", "CREATED", "CREATED BY", "SIZE", "COMMENT"), rows)
    return 0
