"""`unionfs image prune`: remove unused images, and free their layers."""

from __future__ import annotations

import argparse
import json
import sys

from layers import gc
from layers.cli import showing
from layers.store import Store, StoredImage
from unionfs.cli import image_flags
from unionfs.cli.arguments import Parser
from unionfs.containers import images
from unionfs.drivers import btrfs, devicemapper
from unionfs.printable import printable

_DESCRIPTION = """\
Remove the images that have no name; with --all also those that no container uses. Their layers are freed unless
other images have them. The remains of interrupted pulls are freed, too, and the caches of builds: steps whose layers no
image has, and the directories of RUN --mount=type=cache."""


def main(argv: list[str]) -> int:
    """Run `unionfs image prune ARGV`."""
    parser = Parser("image prune", _DESCRIPTION, image_flags.EPILOG)
    parser.add_argument("-a", "--all", action="store_true", help="also images with names, if no container uses them")
    parser.add_argument("-f", "--force", action="store_true", help="do not ask")
    parser.add_argument("--json", action="store_true", help="print JSON; do not ask")
    image_flags.add_root(parser)
    image_flags.add_debug(parser)
    arguments = parser.parse(argv)
    if not arguments.force and not arguments.json and sys.stdin.isatty():
        what = "that no container uses" if arguments.all else "without a name"
        print(f"Remove all images {what}? [y/N] ", end="", flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            return 1
    return images.with_ids(lambda: _prune(arguments))


def _prune(arguments: argparse.Namespace) -> int:
    with images.failures():
        store = image_flags.store_of(arguments)
        used, bases = images.layers_in_use(arguments.root), images.bases(arguments.root)
        needed = {base.digest for base in bases}
        removed = []
        for named in store.list_images():
            if named.descriptor.digest not in needed and (not named.name or arguments.all):
                _take_away(store, named)
                removed.append(named.name or str(named.descriptor.digest))
        freed = gc.collect(store, used, bases, builds_too=True)
        btrfs.sweep(store.root)
        devicemapper.sweep(store.root)
    if arguments.json:
        found = {"images": removed, "blobs": freed.blobs, "layers": freed.layers, "size": freed.size}
        print(json.dumps(found | {"steps": freed.steps}, indent=1))
        return 0
    for name in removed:
        print(f"untagged {printable(name)}")
    print(f"freed: {showing.human(freed.size)} of blobs and {len(freed.layers)} unpacked layers")
    return 0


def _take_away(store: Store, named: StoredImage) -> None:
    if named.name:
        store.untag(named.name)
    else:
        store.remove_digest(named.descriptor.digest)
