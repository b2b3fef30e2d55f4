"""Unpack a layer's tar into a directory, a new one or a temporary one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from layers import owners
from layers.attributes import Options, Unpacked
from layers.pack import Item, pack
from layers.resolve_parents import resolve_parents
from layers.unpack import unpack
from unionfs.trees.remove import remove_path


@contextmanager
def unpacked_tar(path: str, chosen: Options) -> Iterator[str]:
    """Unpack the tar at `path` into a temporary directory for the block. Raises: Refused, OSError."""
    with tempfile.TemporaryDirectory(prefix="layers-", ignore_cleanup_errors=True) as scratch:
        tree = os.path.join(scratch, "layer")
        try:
            unpack_tar(path, tree, chosen)
            yield tree
        finally:
            remove_path(tree)


def unpack_tar(path: str, into: str, chosen: Options, record: str | None = None) -> Unpacked:
    """Unpack the tar at `path` (`-`: stdin) into the new directory `into`, and write fingerprints to the file `record`.

    Both are removed again on failure. Raises: Refused, OSError.
    """
    os.mkdir(into, 0o755)
    try:
        root_fd = os.open(into, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with ExitStack() as stack:
                fingerprints = None if record is None else stack.enter_context(open(record, "wb"))
                source = stack.enter_context(open(0 if path == "-" else path, "rb", closefd=path != "-"))
                result = unpack(source, root_fd, chosen, fingerprints)
                resolve_parents(result, root_fd, chosen, lambda below: None, fingerprints)
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
    """Make the new directory `into` from `items`, as packing and unpacking them would."""
    with tempfile.TemporaryFile(dir=os.path.dirname(os.path.abspath(into))) as tar:  # nameless: gone after a crash
        pack(items, tar, "none")
        tar.flush()
        unpack_tar(f"/proc/self/fd/{tar.fileno()}", into, chosen, record)


def own_options(*, dialect: str = "aufs", noted: bool = False) -> Options:
    """Options for unpacking with the ids of this process: with a single id, owners are noted instead of set."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        has_ids = os.geteuid() == 0 and sum(int(line.split()[2]) for line in file) > 1
    return Options(owners=owners.MAPPED if has_ids and not noted else owners.NOTED, dialect=dialect)
