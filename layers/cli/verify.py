"""`layers verify`: which files of unpacked layers changed since they were unpacked."""

from __future__ import annotations

import json
import os

from layers import image, unpacked
from layers.cli import subjects
from layers.cli.command import Parser
from layers.errors import FOUND, NotFound, printable
from layers.store import Store


def main(argv: list[str]) -> int:
    """Run `layers verify ARGV`."""
    parser = Parser(
        "verify",
        "Compare unpacked layers with the fingerprints taken when they were unpacked (XXH3-128). Exit code 3 when\n"
        "something differs. Without IMAGE all unpacked layers are compared.",
    )
    parser.add_argument("images", metavar="IMAGE", nargs="*")
    parser.add_argument("--json", action="store_true", help="print JSON")
    subjects.add_root(parser)
    arguments = parser.parse_args(argv)
    store = Store(arguments.root)
    found = []
    for key in _keys(store, arguments.images):
        for one in unpacked.verify(store, key):
            found.append({"layer": key, "path": "/" + os.fsdecode(one.path), "what": list(one.what)})
            if not arguments.json:
                print(f"{key[:12]} /{printable(os.fsdecode(one.path))}: {', '.join(one.what)}")
    if arguments.json:
        print(json.dumps(found, indent=1))
    return FOUND if found else 0


def _keys(store: Store, images: list[str]) -> list[str]:
    if not images:
        return sorted(os.listdir(store.layers)) if os.path.isdir(store.layers) else []
    keys: dict[str, None] = {}
    for text in images:
        found = image.unpacked_layers(store, store.find(text).descriptor)
        if not found:
            raise NotFound("verifying", text, "none of its layers is unpacked")
        keys |= dict.fromkeys(layer.key for layer in found)
    return list(keys)
