"""`layers verify`: list files of unpacked layers that changed since they were unpacked; check tars and blobs."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Iterator
from typing import NamedTuple

from layers import digest as digests
from layers import fingerprint, lookup, unpacked
from layers.cli import subjects
from layers.cli.command import Parser
from layers.cli.showing import json_path, path_text
from layers.cli.subjects import IMAGE, TAR, Subject
from layers.cli.unpack import FINGERPRINTS_SUFFIX
from layers.errors import FOUND, LayerError, NotFound, Refused
from layers.pieces import TarPieces
from layers.safe_open import directories
from layers.store import Store
from unionfs.printable import printable

_DESCRIPTION = f"""\
Compare unpacked layers with the fingerprints taken when they were unpacked (XXH3-128), at the speed of the disk.
Without an argument all unpacked layers of the store are compared.

A directory is compared with DIR{FINGERPRINTS_SUFFIX}, which `layers unpack --fingerprints` wrote. A tar is read to its
end, to see whether it is complete and unpacking would refuse none of it. --blobs also compares the blobs of an image
in the store with their digests. Exit code 3 when a difference or a fault is found."""


class _Finding(NamedTuple):
    where: str  # key of a layer, path of a tar or directory, or digest of a blob
    path: bytes
    what: tuple[str, ...]


def main(argv: list[str]) -> int:
    """Run `layers verify ARGV`."""
    parser = Parser("verify", _DESCRIPTION)
    parser.add_argument("layers", metavar="LAYER|IMAGE", nargs="*")
    parser.add_argument(
        "--blobs", action="store_true", help="also check the configurations and compressed tars of images"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    subjects.add_root(parser)
    arguments = parser.parse_args(argv)
    found = []
    for one in _findings(arguments):
        found.append({"layer": one.where, "path": json_path((one.path,)), "what": list(one.what)})
        if not arguments.json:
            path = f" {path_text((one.path,))}" if one.path else ""
            where = one.where[:12] if os.sep not in one.where and len(one.where) == 64 else one.where
            print(f"{printable(where)}{path}: {', '.join(one.what)}")
    if arguments.json:
        print(json.dumps(found, indent=1))
    return FOUND if found else 0


def _findings(arguments: Namespace) -> Iterator[_Finding]:
    store = Store(arguments.root)
    named = [subjects.parse(text) for text in arguments.layers]
    keys: dict[str, None] = {}
    for subject in named:
        if subject.kind == TAR:
            yield from _of_tar(subject)
        elif subject.kind != IMAGE:
            yield from _of_directory(subject.text)
        else:
            damaged = list(_of_blobs(store, subject.text)) if arguments.blobs else []
            yield from damaged
            try:
                keys |= dict.fromkeys(_keys(store, subject.text))
            except Refused:
                if not damaged:
                    raise
    if not named:
        for known in store.list_images() if arguments.blobs else []:
            yield from _of_blobs(store, known.descriptor.digest)
        keys |= dict.fromkeys(sorted(os.listdir(store.layers)) if os.path.isdir(store.layers) else [])
    for key in keys:
        for one in unpacked.verify(store, key):
            yield _Finding(key, one.path, one.what)


def _keys(store: Store, text: str) -> list[str]:
    found = lookup.unpacked_layers(store, store.find(text).descriptor)
    if not found:
        raise NotFound("verifying", text, "none of its layers is unpacked")
    return [layer.key for layer in found]


def _of_tar(subject: Subject) -> Iterator[_Finding]:
    with open(subject.text, "rb") as file:
        try:
            for _ in TarPieces(file):
                pass
        except LayerError as error:
            yield _Finding(subject.text, os.fsencode(error.subject), (error.why,))


def _of_directory(directory: str) -> Iterator[_Finding]:
    directory = directory.rstrip("/") or "/"
    try:
        with open(directory + FINGERPRINTS_SUFFIX, "rb") as file:
            expected = fingerprint.read(file)
    except FileNotFoundError:
        hint = "layers unpack --fingerprints TAR DIR records them; layers diff compares with another tree"
        raise NotFound(
            "verifying", directory, f"there are no fingerprints ({directory}{FINGERPRINTS_SUFFIX})", hint=hint
        ) from None
    with directories(directory) as tree:
        for one in fingerprint.differences(tree, expected):
            yield _Finding(directory, one.path, one.what)


def _of_blobs(store: Store, text: str) -> Iterator[_Finding]:
    """Compare the blobs of an image with their digests; a blob that cannot be read is a finding, too."""
    try:
        descriptor, item, _ = lookup.read(store, store.find(text).descriptor)
    except NotFound:
        raise
    except LayerError as error:
        yield _Finding(text, b"", (str(error),))
        return
    for blob in (descriptor, item.config, *item.layers):
        hash_ = digests.hasher(blob.digest)
        try:
            with store.open_blob(blob.digest) as file:
                while data := file.read(1 << 20):
                    hash_.update(data)
        except NotFound:
            yield _Finding(blob.digest, b"", ("missing",))
            continue
        if digests.finished(blob.digest, hash_) != blob.digest:
            yield _Finding(blob.digest, b"", ("content",))
