"""Prepare the sources of ADD before they are copied: fetch URLs, unpack archives."""

from __future__ import annotations

import hashlib
import os
import posixpath
from contextlib import ExitStack
from typing import Final
from urllib.parse import urlsplit

from layers.store import Store
from layers.tar_directory import unpack_tar
from unionfs.build.context import is_archive
from unionfs.build.copy_layer import own_options
from unionfs.build.copy_sources import Source, TreeSource
from unionfs.build.digests import Digests
from unionfs.build.patterns import Patterns
from unionfs.build.source import ContainerfileError, Place
from unionfs.build.trees import Directory, Layers

_READ: Final = 1 << 20
_MODE: Final = 0o600  # docker's


def fetch(url: str, checksum: str, into: str, place: Place, stack: ExitStack, *, to_directory: bool) -> TreeSource:
    """The file at a URL, fetched into the new directory `into`. Raises: ContainerfileError for another `checksum`
    (empty: any), and for a URL without a name when the copy goes into a directory; LayerError, OSError."""
    from layers.http_file import opened

    name = os.fsencode(posixpath.basename(urlsplit(url).path))
    if not name and to_directory:
        hint = "give a destination that does not end with a slash"
        raise ContainerfileError(place, f"{url} names no file", hint=hint)
    name = name or b"download"
    os.mkdir(into, 0o700)
    hash_ = hashlib.sha256()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with open(os.open(os.path.join(os.fsencode(into), name), flags, _MODE), "wb") as file, opened(url) as body:
        while data := body.read(_READ):
            hash_.update(data)
            file.write(data)
        modified_s = body.modified_s
    if modified_s is not None:  # Dockerfile reference, "ADD": the time of the server
        os.utime(os.path.join(os.fsencode(into), name), (modified_s, modified_s))
    if checksum and checksum != f"sha256:{hash_.hexdigest()}":
        why = f"{url} has the checksum sha256:{hash_.hexdigest()}"
        raise ContainerfileError(place, why, hint=f"expected {checksum}")
    root_fd = os.open(into, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, root_fd)
    return TreeSource(Directory(root_fd, Digests()), (name,), name, False, Patterns(()))


def holds_archive(source: Source) -> bool:
    """Whether a source is a file that is a tar, compressed or not. Raises: OSError."""
    if not isinstance(source, TreeSource) or source.is_dir:
        return False
    with open(source.tree.open(source.tree.look(source.path)), "rb") as file:
        return is_archive(file)


def unpacked(store: Store, source: TreeSource, stack: ExitStack) -> TreeSource:
    """Unpack an archive, with its owners, and return the directory. Preconditions: with all ids, within `store.adding`.

    Raises: Refused, OSError.
    """
    into = store.new_aside()
    stack.callback(store.discard, into)
    with open(source.tree.open(source.tree.look(source.path)), "rb") as file:
        unpack_tar(f"/proc/self/fd/{file.fileno()}", into, own_options())
    return TreeSource(stack.enter_context(Layers([into])), (), b"", True, source.excluded)
