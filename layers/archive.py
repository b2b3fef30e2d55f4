"""Read and write images as one file: `docker save` and OCI archives.

Written archives are both: an OCI image layout (image-layout.md) with Docker's manifest.json beside it, as newer Docker
versions write it. Read archives may be either, compressed or not, also from a pipe. Archives are untrusted: names are
looked up within the archive, digests are compared, and a layer is verified when it is unpacked.
"""

from __future__ import annotations

import io
import os
import posixpath
import re
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import IO, Any, Final, NamedTuple

from layers import config as configs
from layers import digest as digests
from layers import image, lookup, make_image
from layers import manifest as manifests
from layers import reference as references
from layers.attributes import Options
from layers.compression import GZIP, decompressed
from layers.digest import Digest
from layers.entry import FILE, LINK, SYMLINK
from layers.errors import LayerError, Malformed, NotFound, Refused
from layers.limits import Limits
from layers.manifest import MAX_MANIFEST, OCI_LAYER, REF_NAME, Descriptor, Index, Manifest
from layers.progress import Progress, Silent
from layers.store import Store, StoredImage
from layers.tarread import entries
from layers.tarstream import TarStream

_READ: Final = 1 << 20
_DOCKER_MANIFEST: Final = "manifest.json"
_CONTAINERD_NAME: Final = "io.containerd.image.name"
_WHAT: Final = "loading"
_OPENING: Final = "opening an image"
_OF_ARCHIVES: Final = re.compile(
    r"manifest\.json|index\.json|oci-layout|repositories|blobs|(sha256:)?[0-9a-f]{64}(\.json|\.tar|\.tar\.gz)?"
)
"""The names at the root of archives of Docker (old and new), skopeo, podman, kaniko and OCI."""
_NESTED_MAX: Final = 4  # indexes within each other
_LINKS_MAX: Final = 40  # symlinks to symlinks


class Loaded(NamedTuple):
    """One image that was loaded. Its name is empty if the archive gives it none."""

    name: str
    digest: Digest


def load(
    store: Store,
    source: IO[bytes],
    *,
    name: str = "",
    options: Options | None = None,
    progress: Progress | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> list[Loaded]:
    """Load all images of an archive into the store and unpack their layers; `name` is for an archive with one image.

    Raises: Refused for a malformed archive or a wrong digest, LayerError, OSError; images loaded before it stay.
    """
    report = progress or Silent()
    chosen = options or Options()
    with store.adding():
        found = load_blobs(store, source, chosen, report, warn)
        if name and len({descriptor.digest for _, descriptor in found}) != 1:
            why = f"a name can be given to one image only; the archive holds {len(found)} images"
            raise LayerError(_WHAT, name, why)
        loaded = []
        for known, descriptor in found:
            resolved = image.unpack_image(store, descriptor, chosen, report)
            full = str(references.parse(name)) if name else known
            store.tag(resolved.descriptor if resolved.descriptor.digest == descriptor.digest else descriptor, full)
            loaded.append(Loaded(full, descriptor.digest))
    return loaded


def load_blobs(
    store: Store,
    source: IO[bytes],
    chosen: Options,
    report: Progress,
    warn: Callable[[str], None] = lambda text: None,
) -> list[tuple[str, Descriptor]]:
    """Put the blobs of an archive into the store, without naming or unpacking the images; returns the images.

    `warn` is called with a sentence for each part of the archive that is no image or has no data, and is left out.

    Preconditions: within `store.adding`. Raises: Refused for a malformed archive or a wrong digest, OSError.
    """
    aside = store.new_aside()
    try:
        with open(aside, "w+b") as spool:
            _spool(source, spool, chosen.limits, report)
            archive = _Archive(spool, chosen.limits)
            if "index.json" in archive.members and "oci-layout" in archive.members:
                return _Layout(store, archive, warn).load()
            if _DOCKER_MANIFEST in archive.members:
                return _load_docker(store, archive, chosen, report)
            raise Refused(_WHAT, "", "neither Docker's nor an OCI archive: no manifest.json, no index.json")
    finally:
        with suppress(FileNotFoundError):
            os.unlink(aside)


def is_archive(path: str) -> bool:
    """Whether the tar at `path` is an image archive and not a layer: all its names are those of archives. Reads up to
    the first other name, so of a layer mostly one entry. A damaged tar is no archive. Raises: OSError."""
    limits = Limits()
    seen: set[str] = set()
    with suppress(Refused), open(path, "rb") as file, TarStream(file, limits) as stream:
        for entry in entries(stream, limits):
            top = os.fsdecode(entry.path[0]) if entry.path else ""
            if top and not _OF_ARCHIVES.fullmatch(top):
                return False
            seen.add(top)
        return _DOCKER_MANIFEST in seen or {"index.json", "oci-layout"} <= seen
    return False


def open_archive(path: str, keep: ExitStack, name: str = "") -> tuple[Store, StoredImage]:
    """Open the only image of an archive, or the one with this name, in a temporary store, removed when `keep` closes.

    Raises: Refused, NotFound; LayerError when there are several; OSError.
    """
    store = Store(keep.enter_context(tempfile.TemporaryDirectory(prefix="layers-")))
    with store.adding(), open(path, "rb") as source:
        blobs = load_blobs(store, source, Options(), Silent())
    return store, only_image([StoredImage(*one, store.root) for one in blobs if not name or one[0] == name], path)


def only_image(found: list[StoredImage], where: str) -> StoredImage:
    """The only one of some images. Raises: NotFound, LayerError."""
    if not found:
        raise NotFound(_OPENING, where, "there is no such image in it")
    if len({one.descriptor.digest for one in found}) > 1:
        names = ", ".join(one.name or one.descriptor.digest for one in found[:5])
        raise LayerError(_OPENING, where, f"it holds {len(found)} images", hint=f"name one of them: {names}")
    return found[0]


def save(store: Store, names: Sequence[str], sink: IO[bytes], progress: Progress | None = None) -> None:
    """Write images of the store into one archive. Raises: NotFound, OSError."""
    report = progress or Silent()
    with store.adding():  # so that nothing is freed meanwhile
        found = [store.find(name) for name in names]
        writer = _Writer(sink)
        docker: list[dict[str, Any]] = []
        index: list[Descriptor] = []
        report.begin("archive", "saving", None)
        for saved in found:
            descriptor, item, config = lookup.read(store, saved.descriptor)
            for blob in (*item.layers, item.config, descriptor):
                writer.blob(store, blob)
                report.advance("archive", blob.size)
            docker.append(
                {
                    "Config": _blob_name(item.config.digest),
                    "RepoTags": _docker_tags(saved.name),
                    "Layers": [_blob_name(layer.digest) for layer in item.layers],
                }
            )
            annotations = {REF_NAME: _tag_of(saved.name), _CONTAINERD_NAME: saved.name} if saved.name else {}
            index.append(
                Descriptor(descriptor.media_type, descriptor.digest, descriptor.size, annotations, config.platform)
            )
        writer.add("index.json", manifests.to_json(Index(manifests.OCI_INDEX, tuple(index))))
        writer.add(_DOCKER_MANIFEST, manifests.dump_json(docker))
        writer.add("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        writer.close()
        report.end("archive", "saved")


class _Archive:
    """The files of a plain tar, readable in any order."""

    def __init__(self, file: IO[bytes], limits: Limits) -> None:
        self._file = file
        self.members: dict[str, tuple[int, int]] = {}  # path -> offset and size of its data
        links: dict[str, str] = {}
        file.seek(0)
        with TarStream(file, limits) as stream:
            for entry in entries(stream, limits):
                path = os.fsdecode(b"/".join(entry.path))
                if entry.kind == FILE and entry.extents is None:
                    self.members[path] = (stream.tell(), entry.size)
                elif entry.kind == LINK:
                    links[path] = os.fsdecode(b"/".join(entry.link))
                elif entry.kind == SYMLINK:  # old versions of Docker link equal layers
                    links[path] = posixpath.normpath(posixpath.join(posixpath.dirname(path), os.fsdecode(entry.target)))
        for path, target in links.items():
            end = target
            for _ in range(_LINKS_MAX):
                end = links.get(end, end)
            if end in self.members:
                self.members.setdefault(path, self.members[end])

    def read(self, path: str, limit: int = MAX_MANIFEST) -> bytes:
        """Read a small file. Raises: Refused when it is missing or larger than `limit` bytes."""
        offset, size = self._find(path)
        if size > limit:
            raise Refused(_WHAT, path, f"{size} bytes; the limit is {limit}")
        self._file.seek(offset)
        return self._file.read(size)

    def open(self, path: str) -> IO[bytes]:
        """Open a file of any size. Raises: Refused when it is missing."""
        offset, size = self._find(path)
        return io.BufferedReader(_Part(self._file, offset, size), _READ)

    def size(self, path: str) -> int:
        return self._find(path)[1]

    def _find(self, path: str) -> tuple[int, int]:
        found = self.members.get(posixpath.normpath(path))
        if found is None:
            raise Refused(_WHAT, path, "the archive refers to it but has no such file")
        return found


class _Part(io.RawIOBase):
    """A part of a file, as a file for reading."""

    def __init__(self, file: IO[bytes], offset: int, size: int) -> None:
        self._file = file
        self._at = offset
        self._end = offset + size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        self._file.seek(self._at)
        data = self._file.read(min(len(buffer), self._end - self._at))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _spool(source: IO[bytes], spool: IO[bytes], limits: Limits, progress: Progress) -> None:
    """Write the decompressed archive to the file `spool`: its members are needed in another order than that of the
    archive."""
    progress.begin("archive", "reading", None)
    total = 0
    for chunk in decompressed(source):
        total += len(chunk)
        if total > limits.max_bytes:
            raise Refused(_WHAT, "", f"the archive is larger than {limits.max_bytes} bytes")
        spool.write(chunk)
        progress.advance("archive", len(chunk))
    spool.flush()
    progress.end("archive", "read")


class _Layout:
    """The images of an OCI archive, brought into the store."""

    def __init__(self, store: Store, archive: _Archive, warn: Callable[[str], None]) -> None:
        self._store = store
        self._archive = archive
        self._warn = warn
        self._missing = ""  # a file that the archive refers to but does not have

    def load(self) -> list[tuple[str, Descriptor]]:
        """Raises: Refused, also when there is no image that is complete."""
        index = manifests.parse(self._archive.read("index.json"), manifests.OCI_INDEX)
        if not isinstance(index, Index):
            raise Refused(_WHAT, "index.json", "it is not an index")
        found = []
        for entry in index.manifests:
            name = _full_name(entry.annotations.get(_CONTAINERD_NAME) or entry.annotations.get(REF_NAME, ""))
            images = self._images(entry, 0)
            if len(images) > 1:  # of indexes within an index, which is not kept
                images.sort(key=lambda one: not self._is_own(one))
                for other in images[1:]:
                    self._left(other, "another image of the same index is loaded")
            found += [(name, one) for one in images[:1]]
        if not found and self._missing:
            raise Refused(_WHAT, self._missing, "the archive refers to it but has no such file")
        if not found and index.manifests:
            raise Refused(_WHAT, "index.json", "there is no image in it")
        return found

    def _images(self, descriptor: Descriptor, depth: int) -> list[Descriptor]:
        """Put the blobs of a descriptor into the store; returns the image or index, or of an index of indexes those in
        it."""
        if descriptor.media_type not in manifests.MANIFEST_TYPES + manifests.INDEX_TYPES:
            return self._left(descriptor, f"it is not an image but {descriptor.media_type[:100]!r}")
        path = _blob_name(descriptor.digest)
        if not self._has(descriptor):
            self._missing = path
            return self._left(descriptor, "the archive does not have it")
        data = self._archive.read(path) if path in self._archive.members else self._store.read_blob(descriptor.digest)
        item = manifests.parse(data, descriptor.media_type)
        if isinstance(item, Manifest):
            missing = [blob for blob in (item.config, *item.layers) if not self._has(blob)]
            is_artifact = item.is_artifact or descriptor.is_artifact
            if missing:
                self._missing = self._missing if is_artifact else _blob_name(missing[0].digest)
                return self._left(descriptor, f"the archive does not have {missing[0].digest}")
            for blob in (item.config, *item.layers, descriptor):
                self._bring(blob)
            return self._left(descriptor, "it is not an image but an artifact") if is_artifact else [descriptor]
        if depth == _NESTED_MAX:
            raise Refused(_WHAT, path, f"indexes within more than {_NESTED_MAX} indexes")
        inside = [(entry, self._images(entry, depth + 1)) for entry in item.manifests]
        if any(entry in found for entry, found in inside if entry.media_type in manifests.MANIFEST_TYPES):
            self._bring(descriptor)
            return [descriptor]
        return [found for _, images in inside for found in images]

    def _left(self, descriptor: Descriptor, why: str) -> list[Descriptor]:
        platform = f" ({descriptor.platform})" if descriptor.platform is not None else ""
        self._warn(f"left out: {descriptor.digest}{platform}: {why}")
        return []

    def _has(self, blob: Descriptor) -> bool:
        return _blob_name(blob.digest) in self._archive.members or self._store.has(blob.digest, blob.size)

    def _bring(self, blob: Descriptor) -> None:
        if not self._store.has(blob.digest, blob.size):
            with self._archive.open(_blob_name(blob.digest)) as file:
                self._store.put_stream(file, blob.digest, blob.size)

    def _is_own(self, descriptor: Descriptor) -> bool:
        try:
            item = self._store.read_manifest(descriptor)
            offered = item if isinstance(item, Index) else Index(manifests.OCI_INDEX, (descriptor,))
            manifests.choose(offered, manifests.own_platform())
        except LayerError:
            return False
        return True


def _load_docker(store: Store, archive: _Archive, options: Options, progress: Progress) -> list[tuple[str, Descriptor]]:
    """`docker save`: manifest.json names configurations and layers (Docker image specification v1.2)."""
    found = []
    for entry in _docker_entries(archive):
        data = archive.read(entry["Config"])
        config = configs.parse(data)
        if len(config.diff_ids) != len(entry["Layers"]):
            raise Refused(_WHAT, entry["Config"], "it has another number of layers than manifest.json says")
        layers = []
        for path, diff_id in zip(entry["Layers"], config.diff_ids, strict=True):
            layers.append(_docker_layer(store, archive, path, diff_id, options, progress))
        described = Descriptor(manifests.OCI_CONFIG, store.put(data), len(data))
        manifest = manifests.to_json(Manifest(manifests.OCI_MANIFEST, described, tuple(layers)))
        descriptor = Descriptor(manifests.OCI_MANIFEST, store.put(manifest), len(manifest), platform=config.platform)
        found += [(_full_name(tag), descriptor) for tag in entry["RepoTags"] or [""]]
    return found


def _docker_entries(archive: _Archive) -> list[dict[str, Any]]:
    value = manifests.load_json(b'{"images":' + archive.read(_DOCKER_MANIFEST) + b"}", "reading manifest.json")
    images = value["images"]
    good = isinstance(images, list) and all(
        isinstance(entry, dict)
        and isinstance(entry.get("Config"), str)
        and _are_texts(entry.setdefault("Layers", None) or [])
        and _are_texts(entry.setdefault("RepoTags", None) or [])
        for entry in images
    )
    if not good:
        raise Refused(_WHAT, _DOCKER_MANIFEST, "it is malformed")
    return [entry | {"Layers": entry["Layers"] or []} for entry in images]  # Go writes null for an empty list


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _docker_layer(
    store: Store, archive: _Archive, path: str, diff_id: Digest, options: Options, progress: Progress
) -> Descriptor:
    """A layer of Docker's archive as a blob. The archive has it uncompressed; it is compressed here, once."""
    aside = store.new_aside()
    key = digests.short(diff_id)
    try:
        progress.begin(key, "loading", archive.size(path))
        with archive.open(path) as source, open(aside, "wb") as sink:
            packed = make_image.recompressed(source, sink, GZIP, options, lambda n: progress.advance(key, n))
        if packed.diff_id != diff_id:
            raise Refused(_WHAT, path, f"it is {packed.diff_id}, the configuration says {diff_id}")
        store.put_file(aside, packed.digest)
        progress.end(key, "loaded")
    finally:
        with suppress(FileNotFoundError):
            os.unlink(aside)
    return Descriptor(OCI_LAYER + "+gzip", packed.digest, packed.size)


class _Writer:
    """The tar of an archive; each blob once."""

    def __init__(self, sink: IO[bytes]) -> None:
        self._tar = tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - closed by close()
        self._written: set[Digest] = set()
        self._directories: set[str] = set()

    def blob(self, store: Store, descriptor: Descriptor) -> None:
        if descriptor.digest in self._written:
            return
        self._written.add(descriptor.digest)
        self._directory(f"blobs/{digests.algorithm(descriptor.digest)}")
        with store.open_blob(descriptor.digest) as file:
            self._tar.addfile(_info(_blob_name(descriptor.digest), os.fstat(file.fileno()).st_size), file)

    def add(self, name: str, data: bytes) -> None:
        self._tar.addfile(_info(name, len(data)), io.BytesIO(data))

    def close(self) -> None:
        self._tar.close()

    def _directory(self, name: str) -> None:
        """Add entries for a directory: skopeo chowns one without an entry to root, which fails for other users."""
        for one in (os.path.dirname(name), name):
            if one not in self._directories:
                self._directories.add(one)
                info = tarfile.TarInfo(one)
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                self._tar.addfile(info)


def _info(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o644
    return info


def _blob_name(digest: Digest) -> str:
    return f"blobs/{digests.algorithm(digest)}/{digests.encoded(digest)}"


def _full_name(text: str) -> str:
    """A name in full, as the store has it; a word alone, as umoci writes it, is a name with the tag `latest`."""
    try:
        return str(references.parse(text)) if text else ""
    except Malformed:
        return ""


def _docker_tags(name: str) -> list[str]:
    try:
        reference = references.parse(name)
    except Malformed:
        return []
    return [reference.familiar] if reference.tag and not reference.digest else []


def _tag_of(name: str) -> str:
    try:
        return references.parse(name).tag or name
    except Malformed:
        return name
