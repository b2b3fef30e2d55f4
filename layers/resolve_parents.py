"""Complete an unpacked layer with metadata and data of the layers beneath it.

Knows unpacked layers. Does not know tars. Two things come from the layers beneath: the metadata of directories that
have no entry in the layer, and the data of files that the layer only has hard links to.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import IO, Final, NamedTuple

import xxhash

from layers.attributes import Described, Options, Unpacked, chown, finish_directory, set_xattrs
from layers.entry import DIRECTORY
from layers.errors import Refused
from layers.fingerprint import Fingerprint, Recorder, read_xattrs, xattrs_digest
from layers.safe_open import Directories, Path
from unionfs.write_all import write_all

IMPLICIT_MODE: Final = 0o755  # of directories that neither this layer nor one beneath has an entry for


class LowerEntry(NamedTuple):
    """The file or directory that the layers beneath show at a path."""

    mode: int
    uid: int
    gid: int
    xattrs: dict[str, bytes]
    path_fd: int | None = None  # O_PATH, None for a directory; closed by the receiver


def resolve_parents(
    unpacked: Unpacked,
    root_fd: int,
    options: Options,
    below: Callable[[Path], LowerEntry | None],
    record: IO[bytes] | None = None,
) -> bool:
    """Complete the parts of a layer that `unpack` has listed in `unpacked.unresolved`; `below` looks a path up in the
    layers beneath.

    Returns whether the result depends on the layers beneath. Raises: Refused for a hard link to no file; OSError.
    """
    tree = Directories(root_fd)
    recorder = Recorder(record) if record is not None else None
    depends = False
    try:
        for link, target in unpacked.unresolved.links.items():
            _copy_linked(tree, link, target, below(target), options, recorder)
            depends = True
        # The deepest first: a directory's mode may forbid entering it.
        for path, mtime_ns in sorted(unpacked.unresolved.directories.items(), key=lambda item: -len(item[0])):
            found = below(path)
            if found is None or not stat.S_ISDIR(found.mode):
                found = LowerEntry(DIRECTORY | IMPLICIT_MODE, 0, 0, {})
            elif (found.mode, found.uid, found.gid) != (DIRECTORY | IMPLICIT_MODE, 0, 0) or found.xattrs:
                depends = True
            described = Described(
                stat.S_IMODE(found.mode), found.uid, found.gid, mtime_ns, tuple(sorted(found.xattrs.items()))
            )
            finish_directory(tree, path, described, options, recorder, unpacked.dropped_xattrs)
    finally:
        tree.close_all()
    return depends


def _copy_linked(
    tree: Directories,
    link: Path,
    target: Path,
    found: LowerEntry | None,
    options: Options,
    recorder: Recorder | None,
) -> None:
    """Make `link` a copy of a file of the layers beneath: each layer is a tree of its own, with its own files."""
    if found is None or found.path_fd is None:
        why = f"a hard link to {os.fsdecode(b'/'.join(target))!r}, which does not exist"
        raise Refused("unpacking a layer", os.fsdecode(b"/".join(link)), why)
    try:
        st = os.fstat(found.path_fd)
        source = os.open(f"/proc/self/fd/{found.path_fd}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(found.path_fd)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(link[-1], flags, 0o600, dir_fd=tree.fd(link[:-1]))
    try:
        hash_ = xxhash.xxh3_128()
        while data := os.read(source, 1 << 20):
            write_all(fd, data)
            hash_.update(data)
        if (st.st_uid, st.st_gid) != (os.geteuid(), os.getegid()):
            chown(fd, st.st_uid, st.st_gid)
        kept = set_xattrs(fd, read_xattrs(source), set(), every=True)
        os.fchmod(fd, stat.S_IMODE(st.st_mode))
        os.utime(fd, ns=(st.st_mtime_ns, st.st_mtime_ns))
    finally:
        os.close(source)
        os.close(fd)
    if recorder is not None:
        mode = stat.S_IMODE(st.st_mode)
        recorder.add(
            link, Fingerprint("f", mode, st.st_uid, st.st_gid, st.st_mtime_ns, hash_.hexdigest(), xattrs_digest(kept))
        )
