"""The store of images: an OCI image layout, and directories of our own beside it. Keeps blobs and names of images.

    ROOT/images/                  OCI image layout (image-layout.md): other tools read and write it in place
        oci-layout  index.json    index.json names the images: annotation org.opencontainers.image.ref.name
        blobs/sha256/HEX          whole and verified, or not there
    ROOT/layers/                  unpacked layers (see `unpacked`)
    ROOT/indexes/                 indexes of layers (see `explore.indexes`)
    ROOT/partial/HEX              incomplete downloads, which are resumed
    ROOT/aside/                   files and directories being built or removed; swept by gc
    ROOT/locks/                   one for the store, one for index.json, one for each blob being fetched

A process that adds an image holds the store's lock shared, from before the first blob until the name is in index.json;
gc holds it exclusively, so it never removes a blob that is about to be named. index.json is replaced atomically.

Names are written in full (docker.io/library/debian:12). A name that another tool wrote is matched as it was written.

A store may have further stores, whose images are searched after its own. They belong to other users: they are only
read, without a lock, and may be changed meanwhile. New blobs and layers are written to the store itself.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Final, NamedTuple

from layers import digest as digests
from layers import manifest as manifests
from layers import reference as references
from layers.digest import Digest
from layers.errors import LayerError, Malformed, NotFound, Refused
from layers.locks import locked, try_lock
from layers.manifest import MAX_MANIFEST, REF_NAME, Descriptor, Index, Manifest
from unionfs import store_files
from unionfs.trees.remove import remove_tree

if TYPE_CHECKING:  # every `unionfs run IMAGE` imports this module
    from layers.compression import Readable

_LAYOUT_VERSION: Final = "1.0.0"
_LAYOUT: Final = b'{"imageLayoutVersion":"%s"}' % _LAYOUT_VERSION.encode()
_INDEX_MAX: Final = 64 << 20  # names of some 100,000 images
_READ: Final = 1 << 20
_SWEPT_MAX: Final = 20  # attempts to write a file that other processes sweep away meanwhile
_NO_BLOB: Final = "pull the image again; for one that was made on an image of another store: --image-store DIR"
_PRIVATE: Final = 0o700  # other users must not reach set-id files of images


class StoredImage(NamedTuple):
    """An image of a store: its name as written (empty: none), and the descriptor of its manifest or index."""

    name: str
    descriptor: Descriptor
    root: str  # of the store


class Store:
    """The images of one root directory. Several processes may use it at once."""

    def __init__(self, root: str, further: Sequence[str] = ()) -> None:
        """`further`: root directories of further stores, in the order in which images are searched."""
        self.root: Final = os.path.abspath(root)
        self.further: Final = tuple(Store(other) for other in further)
        self.images: Final = os.path.join(self.root, "images")
        self.layers: Final = os.path.join(self.root, "layers")
        self.indexes: Final = os.path.join(self.root, "indexes")
        self.partial: Final = os.path.join(self.root, "partial")
        self.aside: Final = os.path.join(self.root, "aside")
        self._locks: Final = os.path.join(self.root, "locks")
        self._index: Final = os.path.join(self.images, "index.json")
        self._layout: Final = os.path.join(self.images, "oci-layout")

    def prepare(self) -> None:
        """Make the directories that are missing. Raises: OSError as the disk does."""
        for directory in (self.layers, self.partial, self.aside, self._locks):
            os.makedirs(directory, _PRIVATE, exist_ok=True)
        os.makedirs(os.path.join(self.images, "blobs", "sha256"), 0o755, exist_ok=True)
        if not os.path.exists(self._layout):
            self._replace(self._layout, _LAYOUT)
        with self._index_locked():
            if not os.path.exists(self._index):
                self._write_index(())

    def check_further(self) -> None:
        """Check that this directory is a further store that can be read. Raises: Refused."""
        what = "opening a further image store"
        try:
            with open(store_files.open_file(self._layout, os.O_RDONLY, shared=True), "rb") as file:
                version = json.loads(file.read(_READ))["imageLayoutVersion"]
        except (FileNotFoundError, NotADirectoryError):
            why = "it has no images/oci-layout, so it is no store, or nothing was pulled into it yet"
            raise Refused(what, self.root, why) from None
        except (ValueError, KeyError, TypeError, RecursionError):
            raise Refused(what, self.root, "its images/oci-layout is damaged") from None
        except OSError as error:
            hint = f"its owner lets others in: chmod 755 {self.root} {self.layers}"
            raise Refused(what, self.root, error.strerror or str(error), hint=hint) from error
        if version != _LAYOUT_VERSION:
            why = f"its layout has version {version!r:.40}; this program reads {_LAYOUT_VERSION}"
            raise Refused(what, self.root, why, hint="a newer program has written it: upgrade unionfs")

    def layer_mode(self) -> int:
        """The mode of the directory of a layer: for all users if `layers/` is open to them, else for its owner only."""
        return 0o755 if os.stat(self.layers).st_mode & 0o005 == 0o005 else _PRIVATE

    # -- locks --

    @contextmanager
    def adding(self) -> Iterator[None]:
        """Hold the store's lock shared while blobs or layers are added and named; first sweep leftovers, if alone."""
        self.prepare()
        exclusive = self.try_exclusive()
        if exclusive is not None:  # so everything in aside/ was left by processes that died
            try:
                self.sweep_aside()
            finally:
                os.close(exclusive)
        with locked(self._lock("store"), shared=True):
            yield

    @contextmanager
    def using(self) -> Iterator[None]:
        """Hold the store's lock shared, so that gc does not remove blobs or layers that nothing refers to yet.

        Unlike `adding` it sweeps nothing, and so does not need the ids of the files of layers.
        """
        self.prepare()
        with locked(self._lock("store"), shared=True):
            yield

    def try_exclusive(self) -> int | None:
        """Take the store's lock exclusively; returns a descriptor that holds it until closed, None if it is held."""
        self.prepare()
        return try_lock(self._lock("store"))

    def try_blob(self, digest: Digest) -> int | None:
        """Take the lock for fetching this blob; returns a descriptor that holds it, None if another process does."""
        return try_lock(self._lock(digests.encoded(digest)))

    def sweep_locks(self) -> None:
        """Remove the lock files of blobs. Preconditions: the lock of `try_exclusive` is held, so these are free."""
        for name in store_files.list_directory(self._locks):
            if name not in ("store.lock", "index.lock"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(self._locks, name))

    def _lock(self, name: str) -> str:
        return os.path.join(self._locks, f"{name}.lock")

    def sweep_aside(self) -> None:
        """Remove the content of aside/. Preconditions: as for `sweep_locks`."""
        for name in store_files.list_directory(self.aside):
            path = os.path.join(self.aside, name)
            if os.path.isdir(path) and not os.path.islink(path):
                self.discard(path)
            else:
                with contextlib.suppress(FileNotFoundError):  # `_replace` needs no lock, and has just renamed it
                    os.unlink(path)

    # -- blobs --

    def blob_path(self, digest: Digest) -> str:
        """The host path of a blob, whether or not it exists."""
        return os.path.join(self.images, "blobs", digests.algorithm(digest), digests.encoded(digest))

    def index_path(self, digest: Digest, ending: str) -> str:
        """The host path of an index, whether or not it exists."""
        return os.path.join(self.indexes, digests.encoded(digest) + ending)

    def has(self, digest: Digest, size: int | None = None) -> bool:
        """Whether the blob exists, here or in a further store (then it is complete), and has the given size, if one is
        given."""
        return self.has_own(digest, size) or any(other.has_own(digest, size) for other in self.further)

    def has_own(self, digest: Digest, size: int | None = None) -> bool:
        """As `has`, without the further stores."""
        try:
            found = os.stat(self.blob_path(digest)).st_size
        except (FileNotFoundError, NotADirectoryError):
            return False
        return size is None or found == size

    def open_blob(self, digest: Digest) -> IO[bytes]:
        """Open a blob for reading. Raises NotFound."""
        for store in (self, *self.further):
            try:
                return open(store_files.open_file(store.blob_path(digest), os.O_RDONLY, shared=True), "rb")
            except (FileNotFoundError, NotADirectoryError):
                pass
        raise NotFound("reading a blob", digest, "it is not in the store", hint=_NO_BLOB)

    def read_blob(self, digest: Digest, limit: int = MAX_MANIFEST) -> bytes:
        """Read a blob of at most `limit` bytes and verify it. Raises NotFound, Refused."""
        with self.open_blob(digest) as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise Refused("reading a blob", digest, f"it is larger than {limit} bytes")
        hash_ = digests.hasher(digest)
        hash_.update(data)
        if digests.finished(digest, hash_) != digest:
            raise Refused("reading a blob", digest, "the file was damaged", hint="remove the image and pull it again")
        return data

    def put(self, data: bytes) -> Digest:
        """Add a small blob. Preconditions: within `adding`."""
        digest = digests.of(data)
        if not self.has_own(digest, len(data)):
            self._replace(self.blob_path(digest), data)
        return digest

    def put_file(self, path: str, digest: Digest) -> None:
        """Rename the file at `path` to the blob `digest`. Preconditions: verified, and on the store's filesystem."""
        fd = store_files.open_file(path, os.O_RDONLY, shared=True)
        try:
            os.fchmod(fd, 0o644)
            os.fsync(fd)
        finally:
            os.close(fd)
        target = self.blob_path(digest)
        os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
        os.rename(path, target)

    def put_stream(self, source: Readable, digest: Digest, size: int) -> None:
        """Add a blob of any size from `source`. Raises Refused when its size or digest differs."""
        if self.has_own(digest, size):
            return
        aside = self.new_aside()
        hash_ = digests.hasher(digest)
        left = size
        try:
            with open(store_files.open_file(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), "wb") as file:
                while left and (data := source.read(min(_READ, left))):
                    file.write(data)
                    hash_.update(data)
                    left -= len(data)
            if left or source.read(1):
                raise Refused("reading a blob", digest, f"its size is not the descriptor's {size} bytes")
            if digests.finished(digest, hash_) != digest:
                raise Refused("reading a blob", digest, "its content does not match its digest")
            self.put_file(aside, digest)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(aside)
            raise

    def open_partial(self, digest: Digest) -> IO[bytes]:
        """Open the file of a partial download, made if missing. Preconditions: the lock of `try_blob` is held."""
        path = self.partial_path(digest)
        return open(store_files.open_file(path, os.O_RDWR | os.O_CREAT), "r+b")

    def partial_path(self, digest: Digest) -> str:
        return os.path.join(self.partial, digests.encoded(digest))

    def new_aside(self) -> str:
        """A new path in aside/, on the store's filesystem, for a file or directory being built."""
        return os.path.join(self.aside, os.urandom(12).hex())

    def discard(self, path: str) -> None:
        """Remove a directory of the store: rename it into aside/, then delete it."""
        gone = self.new_aside()
        try:
            os.rename(path, gone)
        except FileNotFoundError:
            return
        dir_fd = store_files.open_directory(self.aside)
        try:
            remove_tree(dir_fd, os.fsencode(os.path.basename(gone)))
        finally:
            os.close(dir_fd)

    # -- names --

    def list_images(self) -> list[StoredImage]:
        """All images of the store itself, also those without a name. Raises Refused when index.json is damaged."""
        try:
            with open(store_files.open_file(self._index, os.O_RDONLY, shared=True), "rb") as file:
                data = file.read(_INDEX_MAX + 1)
        except FileNotFoundError:
            return []
        # Other tools write no media type, or null for no images.
        what = "reading the store's index.json"
        try:
            index = manifests.parse(data, manifests.OCI_INDEX, limit=_INDEX_MAX)
        except Refused as error:
            raise Refused(what, self._index, error.why, hint=error.hint) from error
        if not isinstance(index, Index):
            raise Refused(what, self._index, "it is not an index")
        return [StoredImage(entry.annotations.get(REF_NAME, ""), entry, self.root) for entry in index.manifests]

    def find(self, text: str) -> StoredImage:
        """Find an image by name, id or digest, here or else in a further store. Raises NotFound, and Malformed for a
        text that cannot be a name."""
        try:
            return self.find_own(text)
        except NotFound as error:
            missing = error
        for other in self.further:
            other.check_further()
            with contextlib.suppress(NotFound):
                return other.find_own(text)
        raise missing

    def find_own(self, text: str) -> StoredImage:
        """As `find`, without the further stores."""
        known = self.list_images()
        for image in known:
            if image.name and image.name == text:
                return image
        by_digest = self._by_digest(known, text)
        if by_digest is not None:
            return by_digest
        try:
            reference = references.parse(text)
        except Malformed:
            if any(image.name for image in known if image.name.partition(":")[0] == text):
                return next(image for image in known if image.name.partition(":")[0] == text)
            raise
        wanted = {str(reference), str(reference._replace(tag=None)) if reference.digest else ""}
        for image in known:
            if image.name and image.name in wanted:
                return image
        if reference.digest is not None:
            for image in known:
                if image.descriptor.digest == reference.digest and _is_of(image.name, reference.name):
                    return image
        raise NotFound("finding an image", text, "it is not in the store", hint=f"unionfs pull {reference.familiar}")

    def tag(self, descriptor: Descriptor, name: str) -> None:
        """Name an image, taking the name from another image that has it; with an empty name it is only kept.

        Preconditions: within `adding`.
        """
        annotations = {key: text for key, text in descriptor.annotations.items() if key != REF_NAME}
        entry = descriptor._replace(annotations=annotations | ({REF_NAME: name} if name else {}))
        with self._index_locked():
            known = self.list_images()
            if not name and any(image.descriptor.digest == descriptor.digest for image in known):
                return
            # The same image without a name is not needed any more.
            kept = [
                image.descriptor
                for image in known
                if (image.name != name if image.name else image.descriptor.digest != descriptor.digest)
            ]
            self._write_index((*kept, entry))

    def untag(self, name: str) -> None:
        """Remove a name. Raises NotFound."""
        with self._index_locked():
            known = self.list_images()
            kept = [image.descriptor for image in known if image.name != name]
            if len(kept) == len(known):
                raise NotFound("removing an image", name, "it is not in the store")
            self._write_index(kept)

    def remove_digest(self, digest: Digest) -> list[str]:
        """Remove all names of the image with this digest; returns them."""
        with self._index_locked():
            known = self.list_images()
            self._write_index([image.descriptor for image in known if image.descriptor.digest != digest])
        return [image.name for image in known if image.descriptor.digest == digest]

    def read_manifest(self, descriptor: Descriptor) -> Manifest | Index:
        """Read the manifest or index of a descriptor. Raises NotFound, Refused."""
        return manifests.parse(self.read_blob(descriptor.digest), descriptor.media_type)

    def id_of(self, descriptor: Descriptor) -> Digest:
        """The image id, as in Docker: the digest of the configuration; of an index, that of the image for this machine.

        For an image that cannot be read, or is for other platforms only, it is the descriptor's digest.
        """
        try:
            item = self.read_manifest(descriptor)
            if isinstance(item, Index):
                item = self.read_manifest(manifests.choose(item, manifests.own_platform()))
        except LayerError:
            return descriptor.digest
        return descriptor.digest if isinstance(item, Index) else item.config.digest

    def _by_digest(self, known: list[StoredImage], text: str) -> StoredImage | None:
        """Find an image by its id or the digest of its manifest, or by their first digits (six or more).

        Images that differ only in the compression of layers have the same id; any of them is returned.
        """
        digits = text.removeprefix("sha256:")
        if len(digits) < 6 or set(digits) - set("0123456789abcdef"):
            return None

        def beginning(identify: Callable[[Descriptor], Digest]) -> dict[Digest, StoredImage]:
            pairs = ((identify(image.descriptor), image) for image in known)
            return {digest: image for digest, image in pairs if digests.encoded(digest).startswith(digits)}

        found = beginning(lambda descriptor: descriptor.digest) or beginning(self.id_of)
        if len(found) > 1:
            raise LayerError("finding an image", text, "several images begin with these digits")
        return next(iter(found.values()), None)

    def _index_locked(self) -> contextlib.AbstractContextManager[None]:
        return locked(self._lock("index"))

    def _write_index(self, entries: tuple[Descriptor, ...] | list[Descriptor]) -> None:
        self._replace(self._index, manifests.to_json(Index(manifests.OCI_INDEX, tuple(entries))))

    def _replace(self, path: str, data: bytes) -> None:
        """Replace the file at `path` atomically.

        This is also done without the store's lock, so another process may sweep the new file from aside/ before it is
        renamed; then it is written again.
        """
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        for attempt in range(_SWEPT_MAX):
            aside = self.new_aside()
            try:
                with open(store_files.open_file(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.rename(aside, path)
            except BaseException as error:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(aside)
                if not isinstance(error, FileNotFoundError) or attempt == _SWEPT_MAX - 1:
                    raise
            else:
                return


def _is_of(name: str, wanted: str) -> bool:
    try:
        return references.parse(name).name == wanted
    except Malformed:
        return False
