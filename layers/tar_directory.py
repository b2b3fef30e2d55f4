"""A layer's tar as a directory: unpacked where it is to stay, or somewhere temporary to be looked into."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from layers import owners
from layers.attributes import Options, Unpacked
from layers.pack import Item, pack
from layers.resolve_parents import settle
from layers.unpack import unpack
from unionfs.trees.remove import remove_path


@contextmanager
def unpacked_tar(path: str, chosen: Options) -> Iterator[str]:
    """A temporary directory with what a tar holds. Raises: Refused, OSError."""
    with tempfile.TemporaryDirectory(prefix="layers-", ignore_cleanup_errors=True) as scratch:
        tree = os.path.join(scratch, "layer")
        try:
            unpack_tar(path, tree, chosen)
            yield tree
        finally:
            remove_path(tree)


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


def own_options(*, dialect: str = "aufs", noted: bool = False) -> Options:
    """How to unpack with the ids there are here: an ordinary user without a namespace has one."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        has_ids = os.geteuid() == 0 and sum(int(line.split()[2]) for line in file) > 1
    return Options(owners=owners.MAPPED if has_ids and not noted else owners.NOTED, dialect=dialect)
