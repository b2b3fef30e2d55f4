"""Unpacked layers of a store: shared by all images that have them, made once, never half.

    ROOT/layers/HEX/diff          the directory a union takes as a lower branch
    ROOT/layers/HEX/fingerprints  what each file was like (see `fingerprint`)
    ROOT/layers/HEX/layer.json    diff id, chain id, sizes, how owners are kept

HEX is of the layer's diff id, so that every stack that has the layer shares the directory. A layer that looks different
on other layers (it passes through directories without describing them, or links to files it does not bring) is kept
under its chain id instead. A directory that exists is whole: it was renamed into place.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

from layers import digest as digests
from layers import fingerprint, unpack
from layers.attributes import Options, Unpacked
from layers.compression import Readable
from layers.digest import Digest
from layers.errors import NotFound, Refused
from layers.resolve_parents import Below, settle
from layers.safe_open import Path, directories
from layers.store import Store
from layers.tree import LayerTrees, View, xattrs
from unionfs import store_files
from unionfs.syscalls import files

_RECORD: Final = "layer.json"
_PRINTS: Final = "fingerprints"
_DIFF: Final = "diff"


class Layer(NamedTuple):
    """One unpacked layer."""

    key: str  # the name of its directory
    directory: str  # to be used as a lower branch
    record: dict[str, Any]


def find(store: Store, diff_id: Digest, chain_id: Digest) -> Layer | None:
    """The unpacked layer, if it is there."""
    for digest in (diff_id, chain_id):
        key = digests.encoded(digest)
        directory = os.path.join(store.layers, key)
        try:
            fd = store_files.open_file(os.path.join(directory, _RECORD), os.O_RDONLY, shared=True)
            with open(fd, encoding="utf-8") as file:
                record = json.load(file)
        except FileNotFoundError:
            continue
        except ValueError:
            hint = f"rm -r {directory}   (it is unpacked again when it is needed)"
            raise Refused("reading a layer", directory, "its record was damaged", hint=hint) from None
        # A layer under its diff id is for every stack; one under a chain id of the same digits for that stack only.
        if record.get("diff_id") == diff_id:
            return Layer(key, os.path.join(directory, _DIFF), record)
    return None


class Pending:
    """A layer that is unpacked but not yet in its place: layers of one image are unpacked at the same time, and each
    is put in place when all beneath it are."""

    def __init__(self, store: Store, options: Options) -> None:
        self.result: Unpacked | None = None  # set once, by `run`
        self._store = store
        self._options = options
        self._aside = store.new_aside()

    def run(self, source: Readable, diff_id: Digest) -> None:
        """Unpack. Raises: Refused also when the tar is not the one that `diff_id` says."""
        os.mkdir(self._aside, 0o700)
        try:
            os.mkdir(os.path.join(self._aside, _DIFF), 0o755)
            with open(os.path.join(self._aside, _PRINTS), "wb") as record:
                root_fd = os.open(os.path.join(self._aside, _DIFF), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    result = unpack.unpack(source, root_fd, self._options, record)
                finally:
                    os.close(root_fd)
            if result.diff_id != diff_id:
                why = f"the tar is {result.diff_id}, the image says {diff_id}"
                raise Refused("unpacking a layer", "", why)
        except BaseException:
            self.drop()
            raise
        self.result = result

    def place(self, chain_id: Digest, beneath: Sequence[str], branches: LayerTrees) -> Layer:
        """Finish on top of the directories `beneath` (top first) and put in place. Raises: Refused, OSError.

        `branches` is for all layers of an image: each is looked at by all above it.
        """
        assert self.result is not None
        result = self.result
        diff = os.path.join(self._aside, _DIFF)
        root_fd = os.open(diff, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with open(os.path.join(self._aside, _PRINTS), "ab") as record:
                depends = settle(result, root_fd, self._options, _shown_by(branches, beneath), record)
            key = digests.encoded(chain_id if depends else result.diff_id)
            described = {
                "diff_id": result.diff_id,
                "chain_id": chain_id if depends else None,
                "tar_size": result.tar_size,
                "size": result.size,
                "entries": result.count,
                "owners": self._options.owners,
                "dropped_attributes": sorted(result.dropped_xattrs),
            }
            with open(os.path.join(self._aside, _RECORD), "w", encoding="utf-8") as file:
                json.dump(described, file)
            files.syncfs(root_fd)  # all of it, before it shows: a crash must not leave a layer of empty files
        except BaseException:
            self.drop()
            raise
        finally:
            os.close(root_fd)
        final = os.path.join(self._store.layers, key)
        try:
            os.rename(self._aside, final)
        except OSError:
            if not os.path.exists(os.path.join(final, _RECORD)):
                self.drop()
                raise
            self.drop()  # another process was faster
        return Layer(key, os.path.join(final, _DIFF), described)

    def drop(self) -> None:
        """Remove what was unpacked."""
        with suppress(FileNotFoundError):
            self._store.discard(self._aside)


def verify(store: Store, key: str) -> list[fingerprint.Difference]:
    """What of an unpacked layer changed since it was unpacked. Raises NotFound."""
    directory = os.path.join(store.layers, key)
    try:
        with open(os.path.join(directory, _PRINTS), "rb") as file:
            expected = fingerprint.read(file)
    except FileNotFoundError:
        raise NotFound("verifying a layer", key, "it is not unpacked") from None
    with directories(os.path.join(directory, _DIFF)) as tree:
        return list(fingerprint.differences(tree, expected))


def prints_of(directory: str) -> dict[bytes, fingerprint.Print]:
    """The fingerprints of an unpacked layer, by the path of its `diff` directory; empty when it has none."""
    try:
        with open(os.path.join(os.path.dirname(directory), _PRINTS), "rb") as file:
            return fingerprint.read(file)
    except FileNotFoundError:
        return {}


def _shown_by(branches: LayerTrees, beneath: Iterable[str]) -> Callable[[Path], Below | None]:
    views: list[View] = []  # made when the first question comes: most layers describe all they have

    def below(path: Path) -> Below | None:
        if not views:
            views.append(branches.view(list(beneath)))
        node = views[0].find(path)
        if node is None:
            return None
        if not node.is_dir and node.kind != stat.S_IFREG:
            return None
        path_fd = None if node.is_dir else node.data.branch.open_path(node.data.path)
        return Below(node.kind | node.mode, node.uid, node.gid, xattrs(node), path_fd)

    return below
