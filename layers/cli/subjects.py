"""What a command line names: a directory, a tar, or an image of the store; as directories to look into."""

from __future__ import annotations

import os
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from layers import image, owners
from layers.attributes import Options, Unpacked
from layers.errors import Malformed, NotFound
from layers.pack import Item, pack
from layers.resolve_parents import settle
from layers.store import Store, default_root
from layers.unpack import unpack
from unionfs.trees.remove import remove_path

DIRECTORY: Final = "dir"
TAR: Final = "tar"
IMAGE: Final = "image"


@dataclass(frozen=True, slots=True)
class Subject:
    """What one word names."""

    kind: str
    text: str


def add_root(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--root", metavar="DIR", default=default_root(), help="the store of images (default: $XDG_DATA_HOME/unionfs)"
    )


def parse(text: str) -> Subject:
    """A word of the command line. What exists as a file is meant as one; anything else is an image."""
    kind, colon, rest = text.partition(":")
    if colon and kind in (DIRECTORY, TAR, IMAGE) and rest:
        return Subject(kind, rest)
    if os.path.isdir(text):
        return Subject(DIRECTORY, text)
    if os.path.exists(text):
        return Subject(TAR, text)
    if text.startswith(("/", "./", "../")):
        raise NotFound("reading a layer", text, "there is no such file or directory")
    return Subject(IMAGE, text)


@contextmanager
def directories(subject: Subject, arguments: Namespace, *, dialect: str = "aufs") -> Iterator[list[str]]:
    """The layer directories of a subject, top first. A tar is unpacked somewhere temporary."""
    if subject.kind == DIRECTORY:
        yield [subject.text]
    elif subject.kind == IMAGE:
        yield image.resolve(Store(arguments.root), subject.text, options()).lowers
    else:
        with tempfile.TemporaryDirectory(prefix="layers-", ignore_cleanup_errors=True) as scratch:
            tree = os.path.join(scratch, "layer")
            try:
                unpack_tar(subject.text, tree, options(dialect=dialect))
                yield [tree]
            finally:
                remove_path(tree)


def one_directory(found: list[str], subject: Subject) -> str:
    """The only layer of a subject. Raises Malformed when it has several."""
    if len(found) != 1:
        why = f"it has {len(found)} layers, one is needed"
        raise Malformed("reading a layer", subject.text, why, hint=f"layers squash image:{subject.text} -o LAYER.tar")
    return found[0]


def unpack_tar(path: str, into: str, chosen: Options, record: str | None = None) -> Unpacked:
    """Unpack a tar (`-`: stdin) into a new directory, which is removed again when that fails; with the fingerprints of
    its files into the file `record`."""
    os.mkdir(into, 0o755)
    try:
        root_fd = os.open(into, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with ExitStack() as stack:
                prints = None if record is None else stack.enter_context(open(record, "wb"))
                source = stack.enter_context(open(0 if path == "-" else path, "rb", closefd=path != "-"))
                result = unpack(source, root_fd, chosen, prints)
                settle(result, root_fd, chosen, lambda below: None, prints)
            return result
        finally:
            os.close(root_fd)
    except BaseException:
        if record is not None:
            with suppress(FileNotFoundError):
                os.unlink(record)
        remove_path(into)
        raise


def unpack_items(items: Iterable[Item], into: str, chosen: Options, record: str | None = None) -> None:
    """What would be packed, as a new directory."""
    with tempfile.TemporaryFile(dir=os.path.dirname(os.path.abspath(into))) as tar:  # no name that could be left behind
        pack(items, tar, "none")
        tar.flush()
        unpack_tar(f"/proc/self/fd/{tar.fileno()}", into, chosen, record)


def options(*, dialect: str = "aufs", noted: bool = False) -> Options:
    """How to unpack with the ids there are here: an ordinary user without a namespace has one."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        has_ids = os.geteuid() == 0 and sum(int(line.split()[2]) for line in file) > 1
    return Options(owners=owners.MAPPED if has_ids and not noted else owners.NOTED, dialect=dialect)
