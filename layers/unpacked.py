"""The unpacked layers of a store: each is unpacked once, and shared by all images that have it.

    ROOT/layers/HEX/diff          the directory that a union takes as a lower branch
    ROOT/layers/HEX/fingerprints  fingerprints of its files (see `fingerprint`)
    ROOT/layers/HEX/layer.json    diff id, chain id, sizes, how owners are kept (see `owners`)

HEX is the layer's diff id, so that all stacks with the layer share the directory. A layer whose content depends on the
layers beneath (directories without an entry, hard links to files of other layers) is kept under its chain id instead.
A directory that exists is complete: it was renamed into place.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Final

from layers import digest as digests
from layers import fingerprint, lookup
from layers.attributes import Options, Unpacked
from layers.digest import Digest
from layers.errors import NotFound, Refused
from layers.safe_open import Path, directories
from layers.store import Store
from layers.tree import LayerTrees, View, xattrs
from unionfs import store_files
from unionfs.syscalls import files

if TYPE_CHECKING:  # imported when a layer is unpacked
    from layers.compression import Readable
    from layers.resolve_parents import LowerEntry

_FINGERPRINTS: Final = "fingerprints"


class Pending:
    """A layer that is being unpacked in a temporary directory. Layers of one image are unpacked at the same time;
    `place` completes and renames each of them, from the bottom up."""

    def __init__(self, store: Store, options: Options) -> None:
        self.result: Unpacked | None = None  # set once, by `run`
        self._store = store
        self._options = options
        self._aside = store.new_aside()

    def run(self, source: Readable, diff_id: Digest) -> None:
        """Unpack the tar in `source`. Raises: Refused, also when its digest is not `diff_id`; OSError."""
        from layers import unpack

        os.mkdir(self._aside, self._store.layer_mode())
        try:
            os.mkdir(os.path.join(self._aside, lookup.DIFF), 0o755)
            made = store_files.open_file(os.path.join(self._aside, _FINGERPRINTS), os.O_WRONLY | os.O_CREAT, 0o644)
            with open(made, "wb") as record:
                root_fd = os.open(os.path.join(self._aside, lookup.DIFF), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
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

    def place(self, chain_id: Digest, beneath: Sequence[str], branches: LayerTrees) -> lookup.Layer:
        """Complete the layer with the directories `beneath` (top first) and rename it into place.

        `branches` is shared by all layers of an image, each of which reads those beneath it. Raises: Refused, OSError.
        """
        from layers.resolve_parents import resolve_parents

        assert self.result is not None
        result = self.result
        diff = os.path.join(self._aside, lookup.DIFF)
        root_fd = os.open(diff, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            made = store_files.open_file(os.path.join(self._aside, _FINGERPRINTS), os.O_WRONLY | os.O_APPEND)
            with open(made, "ab") as record:
                depends = resolve_parents(result, root_fd, self._options, _lookup_in(branches, beneath), record)
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
            store_files.write_file(
                os.path.join(self._aside, lookup.RECORD), json.dumps(described).encode("ascii"), 0o644
            )
            files.syncfs(root_fd)  # before the rename: a crash must not leave a layer of empty files in place
        except BaseException:
            self.drop()
            raise
        finally:
            os.close(root_fd)
        final = os.path.join(self._store.layers, key)
        try:
            os.rename(self._aside, final)
        except OSError:
            if not os.path.exists(os.path.join(final, lookup.RECORD)):
                self.drop()
                raise
            self.drop()  # another process has put the same layer in place
        return lookup.Layer(key, os.path.join(final, lookup.DIFF), described)

    def drop(self) -> None:
        """Remove the temporary directory."""
        with suppress(FileNotFoundError):
            self._store.discard(self._aside)


def verify(store: Store, key: str) -> list[fingerprint.Difference]:
    """The paths of an unpacked layer that changed since it was unpacked. Raises NotFound."""
    directory = os.path.join(store.layers, key)
    try:
        with _opened_fingerprints(directory) as file:
            expected = fingerprint.read(file)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound("verifying a layer", key, "it is not unpacked") from None
    with directories(os.path.join(directory, lookup.DIFF)) as tree:
        return list(fingerprint.differences(tree, expected))


def fingerprints_of(directory: str) -> dict[bytes, fingerprint.Fingerprint]:
    """The fingerprints of the unpacked layer whose `diff` directory is `directory`; empty when it has none."""
    try:
        with _opened_fingerprints(os.path.dirname(directory)) as file:
            return fingerprint.read(file)
    except (FileNotFoundError, NotADirectoryError):
        return {}


def _opened_fingerprints(directory: str) -> IO[bytes]:
    return open(store_files.open_file(os.path.join(directory, _FINGERPRINTS), os.O_RDONLY, shared=True), "rb")


def _lookup_in(branches: LayerTrees, beneath: Iterable[str]) -> Callable[[Path], LowerEntry | None]:
    from layers.resolve_parents import LowerEntry

    views: list[View] = []  # opened at the first lookup: most layers need none

    def below(path: Path) -> LowerEntry | None:
        if not views:
            views.append(branches.view(list(beneath)))
        node = views[0].find(path)
        if node is None:
            return None
        if not node.is_dir and node.kind != stat.S_IFREG:
            return None
        path_fd = None if node.is_dir else node.data.branch.open_path(node.data.path)
        return LowerEntry(node.kind | node.mode, node.uid, node.gid, xattrs(node), path_fd)

    return below
