"""`unionfs rmi`: remove names of images, and free layers that are not used any more."""

from __future__ import annotations

import argparse
import os

from layers import digest as digests
from layers import gc, lookup, reference
from layers.errors import LayerError, Malformed, NotFound
from layers.manifest import Descriptor
from layers.store import Store, StoredImage
from unionfs.cli import image_flags
from unionfs.cli.arguments import Parser
from unionfs.containers import images
from unionfs.containers.errors import ContainerError
from unionfs.drivers import btrfs, devicemapper
from unionfs.printable import printable

_DESCRIPTION = """\
Remove names of images. When an image has no name left, its layers are freed unless other images have them.

An image that a container uses is refused; with --force its name is removed, and its layers stay until the container is
removed."""


def main(argv: list[str]) -> int:
    """Run `unionfs rmi ARGV`."""
    parser = Parser("rmi", _DESCRIPTION, image_flags.EPILOG)
    parser.add_argument(
        "images", metavar="IMAGE", nargs="*", help="a name; or an id or digest, for all names of the image"
    )
    parser.add_argument("-a", "--all", action="store_true", help="all images")
    parser.add_argument(
        "-f", "--force", action="store_true", help="also images that containers use; ignore missing images"
    )
    parser.add_argument("--no-prune", action="store_true", help="only remove names, free nothing")
    image_flags.add_root(parser)
    image_flags.add_debug(parser)
    arguments = parser.parse(argv)
    if not arguments.images and not arguments.all:
        parser.error("no IMAGE given")
    return images.with_ids(lambda: _remove(arguments))


def _remove(arguments: argparse.Namespace) -> int:
    with images.failures():
        store = image_flags.store_of(arguments)
        used = images.layers_in_use(arguments.root)
        wanted = (
            [named.name or named.descriptor.digest for named in store.list_images()]
            if arguments.all
            else arguments.images
        )
        for text in dict.fromkeys(wanted):
            try:
                named = store.find(text)
            except NotFound:
                if arguments.force:
                    continue
                raise
            if named.root != store.root:
                why = f"it is in the further store {named.root}, which is only read"
                raise ContainerError("removing an image", text, why, hint=f"its owner removes it: unionfs rmi {text}")
            meant = _meant(store, named, text)
            if not arguments.force:
                _check_unused(store, named, meant, {os.path.realpath(path) for path in used})
            for one in meant:
                if one.name:
                    store.untag(one.name)
                else:
                    store.remove_digest(one.descriptor.digest)
                print(f"untagged {printable(one.name or one.descriptor.digest)}")
        if not arguments.no_prune:
            _free(store, used, images.bases(arguments.root))
    return 0


def _meant(store: Store, named: StoredImage, text: str) -> list[StoredImage]:
    """The names to remove: a name itself; for a digest or id all names of its images."""
    try:
        by_name = bool(named.name) and (named.name == text or named.name == str(reference.parse(text)))
    except Malformed:
        by_name = False
    if by_name:
        return [named]
    same = [other for other in store.list_images() if other.descriptor.digest == named.descriptor.digest]
    if not digests.encoded(named.descriptor.digest).startswith(text.removeprefix("sha256:")):
        known_as = store.id_of(named.descriptor)
        same = [other for other in store.list_images() if store.id_of(other.descriptor) == known_as] or same
    return same


def _check_unused(store: Store, named: StoredImage, meant: list[StoredImage], used: set[str]) -> None:
    """Raises: ContainerError if a container uses an image whose last name would be removed."""
    if sum(other.descriptor.digest == named.descriptor.digest for other in store.list_images()) > len(meant):
        return
    try:
        found = lookup.unpacked_layers(store, named.descriptor)
    except LayerError:
        return  # a container whose record cannot be read cannot be run either
    if found and os.path.realpath(found[-1].directory) in used:
        hint = "unionfs ps -a lists containers; --force removes the name nevertheless"
        raise ContainerError("removing an image", named.name, "a container uses it", hint=hint)


def _free(store: Store, used: list[str], bases: list[Descriptor]) -> None:
    try:
        freed = gc.collect(store, used, bases)
    except gc.Busy:
        print("space is freed later: another process is adding images (layers gc)")
        return
    btrfs.sweep(store.root)
    devicemapper.sweep(store.root)
    for digest in freed.blobs:
        print(f"deleted {digest}")
