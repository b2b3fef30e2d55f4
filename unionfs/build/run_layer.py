"""Turn the upper of a RUN into a layer of the store: pack it into a blob, and rename its directory into the store.

The directory must equal the blob, since other images may have the same layer on other layers. Superfluous entries of an
upper (a directory in which a file was made and removed, a file that was copied up and not changed) are removed when
nothing is mounted on it. An upper in another form than the blob's (with a renamed or replaced directory, or a hard link
of which one name was opened) is not used; then the layer is unpacked from the blob.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from layers import build_records, fingerprint, lookup, unpacked
from layers import digest as digests
from layers.build_records import StepLayer
from layers.changed_layer import ChangedLayer, put_changes
from layers.digest import Digest
from layers.manifest import Descriptor
from layers.pack import Epoch
from layers.progress import Silent
from layers.safe_open import Path, directories
from layers.store import Store
from layers.tree import LayerTrees
from unionfs import markers, store_files
from unionfs.build.copy_layer import own_options
from unionfs.build.run_container import DIFF, MOUNTPOINTS
from unionfs.syscalls import files

_FINGERPRINTS: Final = "fingerprints"
_OTHER_FORMS: Final = (*markers.OPAQUE_XATTRS, *markers.METACOPY_XATTRS, *markers.REDIRECT_XATTRS)


class Packed(NamedTuple):
    """An upper that was packed."""

    layer: StepLayer
    entries: int
    size: int  # bytes of files, in the tar
    extra: tuple[str, ...]  # paths that are in the directory only, each before what is above it
    is_unpacked: bool  # the layer is in place, made of its blob


def pack(store: Store, directory: str, lowers: Sequence[str], compression: str, epoch: Epoch | None) -> Packed:
    """Pack DIRECTORY/diff, which changes `lowers` (top first), and describe it as the layer that it will be.

    Preconditions: with all ids, within `store.adding`; no process writes to it. Raises: LayerError, OSError.
    """
    diff = os.path.join(directory, DIFF)
    try:
        mountpoints = frozenset(store_files.read_file(os.path.join(directory, MOUNTPOINTS)).split(b"\0")) - {b""}
    except FileNotFoundError:
        mountpoints = frozenset()
    made = put_changes(store, diff, lowers, compression, Silent(), mountpoints=mountpoints, epoch=epoch)
    layer = StepLayer(made.descriptor, made.packed.diff_id, made.packed.tar_size)
    extra = _describe(diff, directory, made)
    if extra is None:
        pending = unpacked.Pending(store, own_options())
        with store.open_blob(layer.descriptor.digest) as blob:
            pending.run(blob, layer.diff_id)
        with LayerTrees() as branches:
            pending.place(layer.diff_id, [], branches)
    return Packed(layer, made.packed.entries, made.packed.tar_size, extra or (), extra is None)


def _describe(diff: str, directory: str, made: ChangedLayer) -> tuple[str, ...] | None:
    """Write the records of the unpacked layer. Return the paths that only the directory has; None: another form."""
    extra: list[Path] = []
    count = size = 0
    seen: set[Path] = set()
    # The process that packs the next layer may read the record at the same time: it must be missing or complete.
    fingerprints = os.path.join(directory, _FINGERPRINTS)
    record_fd = store_files.open_file(f"{fingerprints}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    with open(record_fd, "wb") as file, directories(diff) as tree:
        recorder = fingerprint.Recorder(file)
        for name, found in fingerprint.scan(tree):
            path = tuple(name.split(b"/")) if name else ()
            if path and path not in made.paths:
                if path[-1] == markers.OPAQUE_NAME:
                    return None
                extra.append(path)
                continue
            if found.xattrs and _has_other_form(tree.root_fd, name):
                return None
            seen.add(path)
            recorder.add(path, found)
            count += 1
        if made.paths - seen:
            return None
        described: dict[str, object] = {
            "diff_id": made.packed.diff_id,
            "chain_id": None,
            "tar_size": made.packed.tar_size,
            "size": size,
            "entries": count,
            "owners": own_options().owners,
            "dropped_attributes": [],
        }
        record = os.path.join(directory, lookup.RECORD)
        store_files.write_file(record, json.dumps(described).encode("ascii"), 0o644)
        file.flush()
        files.syncfs(tree.root_fd)  # before it is put in place: a crash must not leave a layer of empty files there
    os.rename(f"{fingerprints}.new", fingerprints)
    with suppress(FileNotFoundError):
        os.unlink(os.path.join(directory, MOUNTPOINTS))
    return tuple(os.fsdecode(b"/".join(path)) for path in sorted(extra, reverse=True))


def _has_other_form(root_fd: int, name: bytes) -> bool:
    path = b"/proc/self/fd/%d/%s" % (root_fd, name)
    with suppress(OSError):
        return any(mark in _OTHER_FORMS for mark in os.listxattr(path, follow_symlinks=False))
    return False


def remove_extra(directory: str, extra: Sequence[str]) -> bytes:
    """Remove the entries that only the directory has. Preconditions: with all ids; nothing is mounted on it.

    Raises: OSError.
    """
    with directories(os.path.join(directory, DIFF)) as tree:
        for text in extra:
            path = tuple(os.fsencode(text).split(b"/"))
            parent_fd = tree.fd(path[:-1])
            before = os.fstat(parent_fd)
            if stat.S_ISDIR(os.stat(path[-1], dir_fd=parent_fd, follow_symlinks=False).st_mode):
                tree.close_all()
                parent_fd = tree.fd(path[:-1])
                os.rmdir(path[-1], dir_fd=parent_fd)
            else:
                os.unlink(path[-1], dir_fd=parent_fd)
            os.utime(parent_fd, ns=(before.st_atime_ns, before.st_mtime_ns))
    return b""


def put_in_place(store: Store, directory: str, packed: Packed) -> None:
    """Rename the layer into its place in the store; other files of `directory` stay. Raises: OSError."""
    if packed.is_unpacked:
        return
    key = digests.encoded(packed.layer.diff_id)
    try:
        os.rename(directory, os.path.join(store.layers, key))
    except OSError:
        if not os.path.exists(build_records.layer_directory(store, packed.layer.diff_id)):
            raise


def to_json(packed: Packed) -> bytes:
    descriptor = packed.layer.descriptor
    value = [descriptor.media_type, descriptor.digest, descriptor.size, packed.layer.diff_id, packed.layer.tar_size]
    return json.dumps([value, packed.entries, packed.size, packed.extra, packed.is_unpacked]).encode("ascii")


def from_json(data: bytes) -> Packed:
    (media_type, digest, size, diff_id, tar_size), entries, files_size, extra, is_unpacked = json.loads(data)
    layer = StepLayer(Descriptor(media_type, Digest(digest), size), Digest(diff_id), tar_size)
    return Packed(layer, entries, files_size, tuple(extra), is_unpacked)
