"""The results of build steps in a registry: one machine pushes them, others use them.

It is an image manifest of the OCI image specification 1.1, as the cache that BuildKit exports to a registry:

    config   application/vnd.unionfs.build-cache.v1+json: {"version": 1, "steps": [{"key": ..., "step": ...}]}; a step
             has the form of `build_records`
    layers   the layers of these steps, each once, with the diff id in the annotation containerd.io/uncompressed

A registry is not trusted: blobs are compared with their digests and unpacked layers with their diff ids; values of
another form are refused. As with every build cache, it cannot be verified that a layer is the result of its step: a
forged cache can bring any layer into the image.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from layers import build_records, image, unpacked
from layers import digest as digests
from layers import manifest as manifests
from layers import reference as references
from layers.attributes import Options
from layers.build_records import KEY, Step, StepLayer
from layers.compression import CountingReader, decompressed
from layers.digest import Digest
from layers.errors import LayerError, Refused
from layers.image import Remote
from layers.manifest import OCI_MANIFEST, Descriptor, Manifest
from layers.progress import Progress
from layers.store import Store
from layers.tree import LayerTrees

MEDIA_TYPE: Final = "application/vnd.unionfs.build-cache.v1+json"
_UNCOMPRESSED: Final = "containerd.io/uncompressed"  # BuildKit's and containerd's annotation of a diff id
_VERSION: Final = 1
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?Z")
_READING: Final = "reading a build cache"


async def fetch_steps(store: Store, text: str, remote: Remote) -> dict[str, Step]:
    """The steps of the cache that the reference `text` names, by key; no layer is fetched.

    Preconditions: within `store.adding`. Raises: NotFound, Refused for another kind of manifest, RegistryError,
    AuthError.
    """
    reference = references.parse(text)
    async with image.open_registries(reference, remote) as registries:
        descriptor, data = await registries[-1].manifest(reference.target)
        item = manifests.parse(data, descriptor.media_type)
        if not isinstance(item, Manifest) or item.config.media_type != MEDIA_TYPE:
            kind = item.config.media_type if isinstance(item, Manifest) else item.media_type
            raise Refused(_READING, text, f"it is no cache of unionfs build, but {kind[:100]!r}")
        if item.config.size > manifests.MAX_MANIFEST:
            raise Refused(_READING, text, f"{item.config.size} bytes of steps; the limit is {manifests.MAX_MANIFEST}")
        await image.fetch_blobs(store, reference, registries, [item.config._replace(urls=())])
    return parse(store.read_blob(item.config.digest), item.layers, text)


async def fetch_layer(store: Store, text: str, step: Step, options: Options, remote: Remote) -> None:
    """Fetch and unpack the layer of a step. Preconditions: within `store.adding`, with all ids of layers.

    Raises: Refused when the registry sends another layer, NotFound, RegistryError, AuthError, OSError.
    """
    layer = step.layer
    assert layer is not None
    reference = references.parse(text)
    async with image.open_registries(reference, remote) as registries:
        await image.fetch_blobs(store, reference, registries, [layer.descriptor])
    if build_records.has_layer(store, layer):
        _compare(store, layer, options)
        return
    pending = unpacked.Pending(store, options)
    with store.open_blob(layer.descriptor.digest) as blob:
        pending.run(blob, layer.diff_id)
    assert pending.result is not None
    unresolved = pending.result.unresolved
    if unresolved.links or any(unresolved.directories):
        pending.drop()
        why = f"the layer {layer.diff_id} depends on layers beneath it, as no layer of unionfs build does"
        raise Refused(_READING, text, why)
    with LayerTrees() as branches:
        pending.place(layer.diff_id, [], branches)


def _compare(store: Store, layer: StepLayer, options: Options) -> None:
    """Compare the data of a blob with a diff id under which a layer is unpacked already, perhaps another one.

    Raises: Refused.
    """
    hash_, size = digests.hasher(layer.diff_id), 0
    with store.open_blob(layer.descriptor.digest) as blob:
        counted = CountingReader(blob)
        for data in decompressed(counted):
            size += len(data)
            options.limits.check_bytes(counted.count, size)
            hash_.update(data)
    found = digests.finished(layer.diff_id, hash_)
    if found != layer.diff_id:
        raise Refused(_READING, layer.descriptor.digest, f"the tar is {found}, the cache says {layer.diff_id}")


async def push(store: Store, text: str, steps: Mapping[str, Step], remote: Remote, progress: Progress) -> Digest:
    """Send steps, with their layers, to a registry, and name them `text`; returns the digest of the manifest.

    Preconditions: within `store.adding`. Raises: LayerError and its subclasses.
    """
    reference = references.parse(text)
    if reference.digest is not None:
        raise LayerError(
            "pushing a build cache", str(reference), "a digest cannot be chosen", hint="name a tag: NAME:TAG"
        )
    config = to_json(steps)
    if len(config) > manifests.MAX_MANIFEST:
        raise LayerError("pushing a build cache", text, f"{len(config)} bytes of steps; registries take 4 MiB")
    layers = {step.layer.descriptor.digest: step.layer for step in steps.values() if step.layer is not None}
    item = Manifest(
        OCI_MANIFEST,
        Descriptor(MEDIA_TYPE, store.put(config), len(config)),
        tuple(
            layer.descriptor._replace(annotations={_UNCOMPRESSED: layer.diff_id}) for _, layer in sorted(layers.items())
        ),
        artifact_type=MEDIA_TYPE,
    )
    data = manifests.to_json(item)
    descriptor = Descriptor(OCI_MANIFEST, store.put(data), len(data))
    async with image.open_registries(reference, remote, to_push=True) as registries:
        return await image.push_manifest(store, registries[0], descriptor, reference.target, progress)


def to_json(steps: Mapping[str, Step]) -> bytes:
    """The configuration of the manifest; equal steps give equal bytes."""
    found = [{"key": key, "step": build_records.to_json(step)} for key, step in sorted(steps.items())]
    return manifests.dump_json({"version": _VERSION, "steps": found})


def parse(data: bytes, layers: Iterable[Descriptor], text: str) -> dict[str, Step]:
    """The steps in the configuration `data` of a cache whose manifest has `layers`. Raises: Refused."""
    value = manifests.load_json(data, _READING)
    sizes = {layer.digest: layer for layer in layers}
    if value.get("version") != _VERSION:
        raise Refused(_READING, text, "it is of another version of this program")
    found: dict[str, Step] = {}
    steps = value.get("steps")
    if not isinstance(steps, list):
        raise Refused(_READING, text, "it has no list of steps")
    for one in steps:
        try:
            key, step = one["key"], build_records.from_json(one["step"])
        except (KeyError, TypeError, ValueError, OverflowError, LayerError) as error:
            raise Refused(_READING, text, f"a step is malformed: {error!r}"[:200]) from None
        layer = step.layer
        known = sizes.get(layer.descriptor.digest) if layer is not None else None
        is_right = (
            isinstance(key, str) and KEY.fullmatch(key) and KEY.fullmatch(step.id) and _TIME.fullmatch(step.created)
        )
        if not is_right or (layer is not None and (known is None or known[:3] != layer.descriptor[:3])):
            raise Refused(_READING, text, "a step has an improper key, id, time or layer")
        if layer is not None:
            _ = layer.descriptor.compression  # refuses unknown media types
        found[key] = step._replace(notes=_notes(step.notes))
    return found


def _notes(given: Mapping[str, Any]) -> dict[str, Any]:
    """The untrusted notes that have the form of COPY's notes: `content` gets into the history."""
    content, entries = given.get("content"), given.get("entries")
    found: dict[str, Any] = {}
    if isinstance(content, str) and KEY.fullmatch(content):
        found["content"] = content
    if isinstance(entries, int) and entries >= 0:
        found["entries"] = entries
    return found
