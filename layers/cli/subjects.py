"""The subjects of verbs: a directory, a tar, or an image of the store, resolved to layer directories."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

from layers import archive, image
from layers.errors import Malformed, NotFound
from layers.progress import Silent
from layers.store import Store
from layers.tar_directory import own_options, unpacked_tar
from unionfs.store_files import default_root

DIRECTORY: Final = "dir"
TAR: Final = "tar"
IMAGE: Final = "image"
ARCHIVE: Final = "archive"  # of `docker save` or OCI


@dataclass(frozen=True, slots=True)
class Subject:
    """One argument of the command line: its kind (DIRECTORY, TAR, IMAGE), and the path or name."""

    kind: str
    text: str


def add_root(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--root", metavar="DIR", default=default_root(), help="the store of images (default: $XDG_DATA_HOME/unionfs)"
    )


def parse(text: str) -> Subject:
    """Parse an argument: without a prefix, an existing path is a directory or tar, any other text an image."""
    kind, colon, rest = text.partition(":")
    if colon and kind in (DIRECTORY, TAR, IMAGE, ARCHIVE) and rest:
        return Subject(kind, rest)
    if os.path.isdir(text):
        return Subject(DIRECTORY, text)
    if os.path.exists(text):
        return Subject(ARCHIVE if os.path.isfile(text) and archive.is_archive(text) else TAR, text)
    if text.startswith(("/", "./", "../")):
        raise NotFound("reading a layer", text, "there is no such file or directory")
    return Subject(IMAGE, text)


@contextmanager
def directories(subject: Subject, arguments: Namespace, *, dialect: str = "aufs") -> Iterator[list[str]]:
    """The layer directories of a subject, top first, for the block. A tar is unpacked into a temporary directory."""
    if subject.kind == DIRECTORY:
        yield [subject.text]
    elif subject.kind == ARCHIVE:
        with ExitStack() as keep:
            store, found = archive.open_archive(subject.text, keep)
            with store.adding():
                lowers = image.unpack_image(store, found.descriptor, own_options(), Silent()).lowers
            yield lowers
    elif subject.kind == IMAGE:
        yield image.resolve(Store(arguments.root), subject.text, own_options()).lowers
    else:
        with unpacked_tar(subject.text, own_options(dialect=dialect)) as tree:
            yield [tree]


def one_directory(found: list[str], subject: Subject) -> str:
    """The single layer of a subject. Raises Malformed when it has several."""
    if len(found) != 1:
        why = f"it has {len(found)} layers, one is needed"
        raise Malformed(
            "reading a layer", subject.text, why, hint=f"layers squash {subject.kind}:{subject.text} -o LAYER.tar"
        )
    return found[0]
