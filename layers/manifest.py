"""Manifests, indexes and descriptors <-> JSON, in OCI's and Docker's media types. Pure.

OCI image specification 1.1: descriptor.md, manifest.md, image-index.md; Docker "Image Manifest Version 2, Schema 2".
The image configuration is in `config`. A manifest that was read is stored as the received bytes, never serialised
again: its digest is that of the bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from layers import digest as digests
from layers.digest import Digest
from layers.errors import Malformed, NotFound, Refused

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_EMPTY: Final = "application/vnd.oci.empty.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"
_DOCKER_SCHEMA1: Final = "application/vnd.docker.distribution.manifest.v1+"

INDEX_TYPES: Final = (OCI_INDEX, DOCKER_LIST)
MANIFEST_TYPES: Final = (OCI_MANIFEST, DOCKER_MANIFEST)
CONFIG_TYPES: Final = (OCI_CONFIG, DOCKER_CONFIG)

LAYER_TYPES: Final = {
    OCI_LAYER: "none",
    OCI_LAYER + "+gzip": "gzip",
    OCI_LAYER + "+zstd": "zstd",
    DOCKER_LAYER: "none",
    DOCKER_LAYER + ".gzip": "gzip",
    DOCKER_LAYER + ".zstd": "zstd",
    # Layers that registries may not distribute; obsolete, but used by old images.
    "application/vnd.oci.image.layer.nondistributable.v1.tar": "none",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": "gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd": "zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar": "none",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip": "gzip",
}
"""Media type of a layer -> its compression."""

MAX_MANIFEST: Final = 4 << 20
"""Bytes of a manifest, index or configuration (distribution specification: registries should take up to 4 MiB)."""
MAX_LAYERS: Final = 4096
"""Far above the limits of Docker (128) and overlayfs (500)."""
MAX_INDEX_ENTRIES: Final = 100_000  # an image layout's own index may hold many names
_REFERENCE_TYPE: Final = "vnd.docker.reference.type"  # the annotation of attestations
REF_NAME: Final = "org.opencontainers.image.ref.name"

_SIZE_MAX: Final = 2**63 - 1


class Platform(NamedTuple):
    """The platform that an image is for (image-index.md, "platform")."""

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class Descriptor(NamedTuple):
    """A reference to a blob: media type, digest, size (descriptor.md)."""

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = {}
    platform: Platform | None = None
    artifact_type: str = ""
    urls: tuple[str, ...] = ()  # URLs of a blob that the registry itself does not have

    @property
    def is_artifact(self) -> bool:
        """Whether an index says that this is no image: an SBOM, a signature, an attestation."""
        unknown = self.platform is not None and self.platform.os == "unknown"
        return bool(self.artifact_type) or unknown or _REFERENCE_TYPE in self.annotations

    @property
    def compression(self) -> str:
        """The compression of a layer: none, gzip or zstd. Raises Refused for another media type than a layer's."""
        try:
            return LAYER_TYPES[self.media_type]
        except KeyError:
            raise Refused("reading a layer", self.digest, f"unknown media type {self.media_type[:100]!r}") from None


class Manifest(NamedTuple):
    """One image for one platform."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = {}
    subject: Descriptor | None = None
    artifact_type: str = ""

    @property
    def is_artifact(self) -> bool:
        """Whether it is no image: its configuration or all its layers are of other types."""
        foreign = bool(self.layers) and all(layer.media_type not in LAYER_TYPES for layer in self.layers)
        return self.config.media_type not in CONFIG_TYPES or foreign


class Index(NamedTuple):
    """A list of manifests, one for each platform."""

    media_type: str
    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = {}


def parse(data: bytes, media_type: str = "", limit: int = MAX_MANIFEST) -> Manifest | Index:
    """Parse a manifest or index that was sent as `media_type` (empty: unknown).

    Raises: Refused if it is larger than `limit` bytes, malformed, of an unknown type, or of two types at once.
    """
    value = load_json(data, "reading a manifest", limit)
    inside = _text(value, "mediaType")
    sent = media_type.partition(";")[0].strip()
    if sent in ("application/json", "application/octet-stream", "text/plain"):
        sent = ""  # some servers send a generic type
    kind = inside or sent or _guess(value)
    if kind.startswith(_DOCKER_SCHEMA1) or (value.get("schemaVersion") == 1 and not inside):
        raise _refused("Docker's manifest schema 1 is obsolete and not read; push the image again with a newer tool")
    if kind not in INDEX_TYPES + MANIFEST_TYPES:
        raise _refused(f"unknown media type {kind[:100]!r}")
    if sent and inside and sent != inside:
        raise _refused(f"it says it is {inside[:100]!r} but was sent as {sent[:100]!r}")
    if value.get("schemaVersion") != 2:
        raise _refused("schemaVersion is not 2")
    # The same bytes must not be a manifest to one reader and an index to another (manifest.md, "ambiguous").
    others = ("layers", "config", "fsLayers") if kind in INDEX_TYPES else ("manifests", "fsLayers")
    if any(key in value for key in others):
        raise _refused("it is an index and a manifest at once")
    if kind in INDEX_TYPES:
        return Index(kind, _descriptors(value, "manifests", MAX_INDEX_ENTRIES), _annotations(value))
    return Manifest(
        kind,
        _descriptor(value.get("config")),
        _descriptors(value, "layers", MAX_LAYERS),
        _annotations(value),
        _descriptor(value["subject"]) if value.get("subject") is not None else None,
        _text(value, "artifactType"),
    )


def to_json(item: Manifest | Index) -> bytes:
    """The JSON of a new manifest or index; equal values give equal bytes."""
    value: dict[str, Any] = {"schemaVersion": 2, "mediaType": item.media_type}
    if isinstance(item, Index):
        value["manifests"] = [_descriptor_json(entry) for entry in item.manifests]
    else:
        if item.artifact_type:
            value["artifactType"] = item.artifact_type
        value["config"] = _descriptor_json(item.config)
        value["layers"] = [_descriptor_json(layer) for layer in item.layers]
        if item.subject is not None:
            value["subject"] = _descriptor_json(item.subject)
    if item.annotations:
        value["annotations"] = dict(sorted(item.annotations.items()))
    return dump_json(value)


def dump_json(value: object) -> bytes:
    """Serialize as JSON without spaces."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")


def load_json(data: bytes, what: str, limit: int = MAX_MANIFEST) -> dict[str, Any]:
    """Parse a JSON object. Raises Refused when it is larger than `limit` bytes, nested too deeply, or no object."""
    if len(data) > limit:
        raise Refused(what, "", f"{len(data)} bytes; the limit is {limit}")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Refused(what, "", f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Refused(what, "", "not a JSON object")
    return value


def parse_platform(text: str) -> Platform:
    """Parse `os/architecture[/variant]`, or an architecture alone (of linux). Raises Malformed."""
    parts = text.lower().split("/")
    if len(parts) == 1:
        parts = ["linux", *parts]
    if len(parts) > 3 or not all(part.replace("_", "").replace(".", "").isalnum() for part in parts):
        raise Malformed("reading a platform", text[:100], "expected OS/ARCHITECTURE[/VARIANT], as linux/arm64")
    return _normal(Platform(parts[0], parts[1], parts[2] if len(parts) > 2 else ""))


def own_platform() -> Platform:
    """The platform of this machine."""
    return _normal(Platform("linux", os.uname().machine.lower()))


def choose(index: Index, wanted: Platform, subject: str = "") -> Descriptor:
    """The first entry of `index` for the platform, preferring the exact variant. Raises NotFound."""
    wanted = _normal(wanted)
    offered = [(entry, _normal(entry.platform)) for entry in index.manifests if entry.platform is not None]
    same = [(e, p) for e, p in offered if (p.os, p.architecture) == (wanted.os, wanted.architecture)]
    for entry, platform in same:
        if platform.variant == wanted.variant:
            return entry
    if same and (not wanted.variant or wanted.architecture == "arm"):
        fitting = [(e, p) for e, p in same if not wanted.variant or p.variant < wanted.variant]
        if fitting:
            return max(fitting, key=lambda pair: pair[1].variant)[0]
    plain = [entry for entry in index.manifests if entry.platform is None and entry.media_type in MANIFEST_TYPES]
    plain = [entry for entry in plain if not entry.is_artifact]
    if not offered and len(plain) == 1:
        return plain[0]
    there = ", ".join(sorted({str(p) for _, p in offered if p.os != "unknown"})) or "nothing"
    raise NotFound("choosing a platform", subject, f"there is no image for {wanted}", hint=f"there is {there[:500]}")


_ARCHITECTURES: Final = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "armel": ("arm", "v6"),
    "i386": ("386", ""),
    "i486": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
}


def _normal(platform: Platform) -> Platform:
    """The platform with the names of GOOS and GOARCH, and with the default variant left out, or v7 for arm."""
    architecture, variant = _ARCHITECTURES.get(platform.architecture, (platform.architecture, ""))
    variant = platform.variant or variant
    if (architecture, variant) in (("arm64", "v8"), ("amd64", "v1")):
        variant = ""  # the defaults
    if architecture == "arm" and not variant:
        variant = "v7"
    if variant.isdecimal():
        variant = "v" + variant
    return Platform(platform.os, architecture, variant, platform.os_version)


def _guess(value: Mapping[str, Any]) -> str:
    """Guess the media type of an OCI manifest or index, which need not name it; empty if it is neither."""
    if "manifests" in value:
        return OCI_INDEX
    return OCI_MANIFEST if "config" in value and "layers" in value else ""


def _descriptors(value: Mapping[str, Any], key: str, limit: int) -> tuple[Descriptor, ...]:
    entries = value.get(key)
    if entries is None and (key == "manifests" or key in value):
        entries = []  # Go writes null for an empty list
    if not isinstance(entries, list):
        raise _refused(f"{key} is not a list")
    if len(entries) > limit:
        raise _refused(f"{len(entries)} {key}; the limit is {limit}")
    return tuple(_descriptor(entry) for entry in entries)


def _descriptor(value: object) -> Descriptor:
    if not isinstance(value, dict):
        raise _refused("a descriptor is not an object")
    size = value.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= _SIZE_MAX:
        raise _refused("a descriptor has no proper size")
    try:
        digest = digests.parse(value.get("digest"))
    except Malformed as error:
        raise _refused(f"a descriptor has no proper digest: {error.subject}") from None
    platform = value.get("platform")
    return Descriptor(
        _text(value, "mediaType"),
        digest,
        size,
        _annotations(value),
        _platform(platform) if isinstance(platform, dict) else None,
        _text(value, "artifactType"),
        tuple(url for url in urls if isinstance(url, str)) if isinstance(urls := value.get("urls"), list) else (),
    )


def _platform(value: Mapping[str, Any]) -> Platform:
    return Platform(
        _text(value, "os"), _text(value, "architecture"), _text(value, "variant"), _text(value, "os.version")
    )


def _descriptor_json(descriptor: Descriptor) -> dict[str, Any]:
    value: dict[str, Any] = {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
    }
    if descriptor.annotations:
        value["annotations"] = dict(sorted(descriptor.annotations.items()))
    if descriptor.platform is not None:
        platform = descriptor.platform
        keys = (("architecture", platform.architecture), ("os", platform.os), ("os.version", platform.os_version))
        value["platform"] = {key: text for key, text in (*keys, ("variant", platform.variant)) if text}
    if descriptor.artifact_type:
        value["artifactType"] = descriptor.artifact_type
    if descriptor.urls:
        value["urls"] = list(descriptor.urls)
    return value


def _annotations(value: Mapping[str, Any]) -> dict[str, str]:
    given = value.get("annotations")
    if given is None:
        return {}
    if not isinstance(given, dict) or not all(isinstance(text, str | None) for text in given.values()):
        raise _refused("annotations are not an object of strings")
    return {key: text or "" for key, text in given.items()}


def _text(value: Mapping[str, Any], key: str) -> str:
    text = value.get(key, "")
    if text is None:
        return ""
    if not isinstance(text, str):
        raise _refused(f"{key} is not a string")
    return text


def layer_sizes(layers: Iterable[Descriptor]) -> int:
    """The bytes of all layers together, as compressed."""
    return sum(layer.size for layer in layers)


def _refused(why: str) -> Refused:
    return Refused("reading a manifest", "", why)
