"""`layers gc`: remove blobs and layers that nothing refers to."""

from __future__ import annotations

import json
from collections.abc import Callable

from layers import gc
from layers.cli import subjects
from layers.cli.command import Parser
from layers.manifest import Descriptor
from layers.store import Store


def main(
    argv: list[str], in_use: Callable[[str], list[str]], bases: Callable[[str], list[Descriptor]] = lambda root: []
) -> int:
    """Run `layers gc ARGV`. `in_use` gives the layer directories, `bases` the images, that containers need."""
    parser = Parser(
        "gc", "Remove blobs and unpacked layers that no image and no container refers to, and partial downloads."
    )
    parser.add_argument("-n", "--dry-run", action="store_true", help="only list what would be removed")
    parser.add_argument("--json", action="store_true", help="print JSON")
    subjects.add_root(parser)
    arguments = parser.parse_args(argv)
    freed = gc.collect(Store(arguments.root), in_use(arguments.root), bases(arguments.root), dry=arguments.dry_run)
    if arguments.json:
        print(json.dumps({"blobs": freed.blobs, "layers": freed.layers, "size": freed.size}, indent=1))
    else:
        would = "would be " if arguments.dry_run else ""
        for digest in freed.blobs:
            print(f"{would}deleted {digest}")
        print(f"{would}freed: {freed.size} bytes of blobs and {len(freed.layers)} unpacked layers")
    return 0
