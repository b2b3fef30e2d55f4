"""Images of a store: pull them, unpack their layers for a union, push them.

Combines registry, store and unpacked layers. `resolve` gives what a union needs of an image, without importing the
modules that only registries need. `make_image` makes new images, `archive` reads and writes them as files.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from layers import credentials as known_credentials
from layers import digest as digests
from layers import lookup, unpacked
from layers import manifest as manifests
from layers import reference as references
from layers.attributes import Options
from layers.config import ImageConfig
from layers.digest import Digest
from layers.endpoints import Endpoint, Wishes, endpoints
from layers.errors import LayerError, NotFound, Refused
from layers.manifest import Descriptor, Index, Manifest, Platform
from layers.origins import may_have_what_was_given
from layers.progress import Progress, Silent
from layers.reference import Reference
from layers.store import Store
from layers.tree import LayerTrees

if TYPE_CHECKING:
    from layers.registry import Registry

_TRANSFERS: Final = 3  # concurrent transfers, as in Docker; more would only share the same bandwidth
_POLL_S: Final = 0.1  # while another process fetches the same blob


class Resolved(NamedTuple):
    """An image whose layers are unpacked."""

    config: ImageConfig
    lowers: list[str]  # directories of its layers, top first
    descriptor: Descriptor  # of its manifest


class Pulled(NamedTuple):
    """The result of a pull."""

    reference: Reference
    digest: Digest  # of the manifest
    new: bool  # the name did not exist before, or named another image


@dataclass(frozen=True, slots=True)
class Remote:
    """Options for requests to registries."""

    wishes: Wishes = field(default_factory=Wishes)
    credentials: known_credentials.Credentials | None = None  # None: those of the usual files (see `credentials`)
    pause_s: float = 0.5  # before the first retry
    warn: Callable[[str], None] = known_credentials.no_warning  # of a credential helper that failed


def resolve(store: Store, text: str, options: Options | None = None, progress: Progress | None = None) -> Resolved:
    """Find an image by name, id or digest, and unpack its layers. Nothing is fetched.

    Raises: NotFound when it is not in the store, Refused when it is damaged or of another kind.
    """
    image = store.find(text)
    with store.adding():
        return unpack_image(store, image.descriptor, options or Options(), progress or Silent())


def unpack_image(store: Store, descriptor: Descriptor, options: Options, progress: Progress) -> Resolved:
    """Unpack those layers of an image that are not unpacked yet. Preconditions: within `store.adding`."""
    descriptor, item, config = lookup.read(store, descriptor)
    lowers: list[str] = []
    chain: Digest | None = None
    with LayerTrees(len(item.layers)) as branches:
        for layer, diff_id in zip(item.layers, config.diff_ids, strict=True):
            chain = digests.chain(chain, diff_id)
            found = lookup.find_layer(store, diff_id, chain)
            if found is None:
                pending = unpacked.Pending(store, options)
                _unpack_blob(pending, store, layer, diff_id, progress, lambda: False)
                found = pending.place(chain, lowers, branches)
            lowers.insert(0, found.directory)
    return Resolved(config, lowers, descriptor)


async def pull(
    store: Store,
    text: str,
    *,
    platform: Platform | None = None,
    all_platforms: bool = False,
    remote: Remote | None = None,
    options: Options | None = None,
    progress: Progress | None = None,
) -> Pulled:
    """Fetch an image, unpack its layers, several at once, and name it. With `all_platforms` an index is stored with the
    images of all platforms, and can be pushed as it is; only the layers for `platform` are unpacked.

    Blobs in the store are not fetched again; partial downloads are resumed. Raises: LayerError and its subclasses; the
    store then has no new name, and no incomplete blob or layer.
    """
    reference = references.parse(text)
    work = _Pull(store, reference, options or Options(), progress or Silent())
    with store.adding():
        async with open_registries(reference, remote or Remote()) as registries:
            descriptor = await work.run(registries, platform or manifests.own_platform(), all_platforms)
        name = str(reference)
        before = next((image.descriptor.digest for image in store.list_images() if image.name == name), None)
        store.tag(descriptor, name)
    return Pulled(reference, descriptor.digest, before != descriptor.digest)


async def push(
    store: Store,
    text: str,
    destination: str | None = None,
    *,
    remote: Remote | None = None,
    progress: Progress | None = None,
) -> Digest:
    """Send an image to a registry, under its own name or as `destination`. Raises: LayerError and its subclasses."""
    image = store.find(text)
    reference = references.parse(destination or image.name or text)
    if reference.digest is not None:
        raise LayerError("pushing", str(reference), "a digest cannot be chosen", hint="name a tag: NAME:TAG")
    mount_sources = _mount_sources(store, reference)
    async with open_registries(reference, remote or Remote(), to_push=True) as registries:
        registry = registries[0]
        item = store.read_manifest(image.descriptor)
        if isinstance(item, Index):
            missing = [entry for entry in item.manifests if not store.has(entry.digest)]
            if missing:
                why = f"the store has the images of {len(item.manifests) - len(missing)} of its platforms only"
                hint = f"unionfs pull --all-platforms {image.name or text}"
                raise NotFound("pushing", image.name or text, why, hint=hint)
            for entry in item.manifests:
                await push_manifest(store, registry, entry, entry.digest, progress or Silent(), mount_sources)
            data = store.read_blob(image.descriptor.digest)
            return await registry.put_manifest(reference.target, data, item.media_type)
        target = reference.target
        return await push_manifest(store, registry, image.descriptor, target, progress or Silent(), mount_sources)


@asynccontextmanager
async def open_registries(
    reference: Reference, remote: Remote, *, to_push: bool = False
) -> AsyncIterator[list[Registry]]:
    """Open the endpoints of a repository (mirrors, then the registry) in the order in which they are asked."""
    from layers.registry import Registry
    from layers.session import Session

    async with AsyncExitStack() as stack:
        registries = []
        for endpoint in endpoints(reference, remote.wishes, to_push=to_push):
            credentials = credentials_for(endpoint, reference, remote)
            session = Session(endpoint, credentials, pause_s=remote.pause_s)
            registries.append(Registry(await stack.enter_async_context(session), endpoint.repository))
        yield registries


async def tags(text: str, remote: Remote | None = None) -> list[str]:
    """All tags of the repository of the reference `text`, as the registry lists them. Raises: LayerError."""
    async with open_registries(references.parse(text), remote or Remote()) as registries:
        return [tag async for tag in registries[-1].tags()]


def credentials_for(endpoint: Endpoint, reference: Reference, remote: Remote) -> known_credentials.Credentials | None:
    """The credentials for an endpoint: those of the command line if it is the registry that was named, else those kept
    for the endpoint's own name."""
    if remote.credentials is not None and may_have_what_was_given(endpoint.registry, reference.registry):
        return remote.credentials
    return known_credentials.find(endpoint.registry, endpoint.repository, warn=remote.warn)


async def run_concurrently(jobs: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Run jobs at the same time. The first failure cancels the others and is raised without an ExceptionGroup."""
    import trio

    failures: list[BaseException] = []

    async def run(job: Callable[[], Awaitable[None]]) -> None:
        try:
            await job()
        except (LayerError, OSError) as error:
            failures.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for job in jobs:
            nursery.start_soon(run, job)
    if failures:
        raise failures[0]


async def fetch_blobs(
    store: Store,
    reference: Reference,
    registries: Sequence[Registry],
    blobs: Sequence[Descriptor],
    progress: Progress | None = None,
) -> None:
    """Fetch blobs that the store does not have. Preconditions: within `store.adding`. Raises: LayerError, OSError."""
    work = _Pull(store, reference, Options(), progress or Silent())
    await run_concurrently([_ensure_job(work, registries, blob) for blob in blobs])


class _Pull:
    """One pull. Layers are fetched and unpacked concurrently, and put in place from the bottom up."""

    def __init__(self, store: Store, reference: Reference, options: Options, progress: Progress) -> None:
        self.store = store
        self.reference = reference
        self.options = options
        self.progress = progress
        import trio

        self.transfers = trio.CapacityLimiter(_TRANSFERS)
        self.unpacking = trio.CapacityLimiter(max(os.cpu_count() or 1, 1))
        self.pending: dict[Digest, unpacked.Pending] = {}  # by diff id
        self.failed = False

    async def run(self, registries: Sequence[Registry], platform: Platform, all_platforms: bool) -> Descriptor:
        registry, descriptor, data = await self._manifest(registries)
        item = manifests.parse(data, descriptor.media_type)
        index: Descriptor | None = None
        if isinstance(item, Index):
            if all_platforms:
                await self._fetch_all_platforms(registries[registries.index(registry) :], item)
                self.store.put(data)
                index = descriptor
            chosen = manifests.choose(item, platform, self.reference.familiar)
            descriptor, data = await registry.manifest(chosen.digest)
            if chosen.size != descriptor.size:
                raise Refused("pulling", self.reference.familiar, "the index says another size of the manifest")
            descriptor = descriptor._replace(platform=chosen.platform)
            item = manifests.parse(data, descriptor.media_type)
        if isinstance(item, Index):
            raise Refused("pulling", self.reference.familiar, "an index within an index")
        if item.config.media_type in manifests.CONFIG_TYPES and item.config.size > manifests.MAX_MANIFEST:
            raise Refused("pulling", self.reference.familiar, f"a configuration of {item.config.size} bytes")
        for layer in item.layers:
            _ = layer.compression  # refuses unknown media types before anything is fetched
        sources = registries[registries.index(registry) :]
        if item.config.media_type not in manifests.CONFIG_TYPES:
            lookup.config_of(item, b"")
        await self._ensure_blob(sources, item.config)
        config = lookup.config_of(item, self.store.read_blob(item.config.digest))
        self.store.put(data)
        try:
            await self._layers(sources, item, config)
        finally:
            import trio

            for left in self.pending.values():
                await trio.to_thread.run_sync(left.drop)
        return index or descriptor

    async def _fetch_all_platforms(self, sources: Sequence[Registry], index: Index) -> None:
        """Fetch all manifests and blobs that an index refers to; nothing is unpacked."""
        for entry in index.manifests:
            descriptor, data = await sources[0].manifest(entry.digest)
            if entry.size != descriptor.size:
                raise Refused("pulling", self.reference.familiar, "the index says another size of a manifest")
            item = manifests.parse(data, descriptor.media_type)
            if isinstance(item, Index):
                raise Refused("pulling", self.reference.familiar, "an index within an index")
            blobs = {blob.digest: blob for blob in (item.config, *item.layers)}
            await run_concurrently([_ensure_job(self, sources, blob) for blob in blobs.values()])
            self.store.put(data)

    async def _manifest(self, registries: Sequence[Registry]) -> tuple[Registry, Descriptor, bytes]:
        """Fetch the manifest from the first endpoint that has it."""
        for registry in registries[:-1]:
            try:
                return registry, *await registry.manifest(self.reference.target)
            except LayerError:
                continue  # the mirror does not answer, or has no such image
        registry = registries[-1]
        return registry, *await registry.manifest(self.reference.target)

    async def _layers(self, sources: Sequence[Registry], item: Manifest, config: ImageConfig) -> None:
        wanted: dict[Digest, Descriptor] = {}
        chains: list[Digest] = []
        for layer, diff_id in zip(item.layers, config.diff_ids, strict=True):
            chains.append(digests.chain(chains[-1] if chains else None, diff_id))
            wanted.setdefault(diff_id, layer)
        missing = {
            diff_id
            for diff_id, chain in zip(config.diff_ids, chains, strict=True)
            if lookup.find_layer(self.store, diff_id, chain) is None
        }

        def job(diff_id: Digest, layer: Descriptor) -> Callable[[], Awaitable[None]]:
            async def run() -> None:
                try:
                    await self._ensure_blob(sources, layer)
                    if diff_id in missing:
                        async with self.unpacking:
                            await self._unpack(layer, diff_id)
                except BaseException:
                    self.failed = True
                    raise

            return run

        # A layer that the manifest lists twice, in two compressions, is unpacked once; both blobs are fetched.
        extra = [layer for layer in item.layers if layer not in wanted.values()]
        jobs = [job(diff_id, layer) for diff_id, layer in wanted.items()]
        jobs += [_ensure_job(self, sources, layer) for layer in extra]
        await run_concurrently(jobs)
        import trio

        await trio.to_thread.run_sync(self._place, item, config, chains)

    async def _unpack(self, layer: Descriptor, diff_id: Digest) -> None:
        import trio

        pending = self.pending[diff_id] = unpacked.Pending(self.store, self.options)
        await trio.to_thread.run_sync(
            _unpack_blob, pending, self.store, layer, diff_id, self.progress, lambda: self.failed
        )

    def _place(self, item: Manifest, config: ImageConfig, chains: Sequence[Digest]) -> None:
        lowers: list[str] = []
        with LayerTrees(len(item.layers)) as branches:
            for layer, diff_id, chain in zip(item.layers, config.diff_ids, chains, strict=True):
                found = lookup.find_layer(self.store, diff_id, chain)
                if found is None:
                    pending = self.pending.pop(diff_id, None)
                    if pending is None:  # the same layer again, whose content depends on the layers beneath
                        pending = unpacked.Pending(self.store, self.options)
                        _unpack_blob(pending, self.store, layer, diff_id, self.progress, lambda: False)
                    found = pending.place(chain, lowers, branches)
                lowers.insert(0, found.directory)

    async def _ensure_blob(self, sources: Sequence[Registry], blob: Descriptor) -> None:
        """Fetch a blob into the store, or wait for another process that is fetching it."""
        import trio

        key = digests.short(blob.digest)
        while not self.store.has(blob.digest, blob.size):
            lock = self.store.try_blob(blob.digest)
            if lock is None:
                await trio.sleep(_POLL_S)
                continue
            try:
                if not self.store.has(blob.digest, blob.size):
                    async with self.transfers:
                        self.progress.begin(key, "pulling", blob.size)
                        await self._fetch(sources, blob, key)
            finally:
                os.close(lock)

    async def _fetch(self, sources: Sequence[Registry], blob: Descriptor, key: str) -> None:
        import trio

        if blob.urls:
            found = await trio.to_thread.run_sync(self._fetch_foreign, blob, key)
            if found:
                self.progress.end(key, "pulled")
                return
        with self.store.open_partial(blob.digest) as file:
            for source in sources:
                try:
                    await source.fetch(blob, file, lambda count: self.progress.advance(key, count))
                    break
                except LayerError:
                    if source is sources[-1]:
                        raise
        await trio.to_thread.run_sync(self.store.put_file, self.store.partial_path(blob.digest), blob.digest)
        self.progress.end(key, "pulled")

    def _fetch_foreign(self, blob: Descriptor, key: str) -> bool:
        """Fetch a foreign layer from the first of its URLs that has it, without credentials (descriptor.md, "urls").

        False if none has it; its registry may.
        """
        from layers import http_file
        from layers.compression import CountingReader

        for url in blob.urls:
            try:
                with http_file.opened(url) as source:
                    body = CountingReader(source, lambda count: self.progress.advance(key, count))
                    self.store.put_stream(body, blob.digest, blob.size)
            except LayerError:
                continue
            return True
        return False


def _ensure_job(pull_: _Pull, sources: Sequence[Registry], layer: Descriptor) -> Callable[[], Awaitable[None]]:
    async def run() -> None:
        await pull_._ensure_blob(sources, layer)

    return run


def _unpack_blob(
    pending: unpacked.Pending,
    store: Store,
    layer: Descriptor,
    diff_id: Digest,
    progress: Progress,
    is_cancelled: Callable[[], bool],
) -> None:
    """Unpack one layer, on any thread, and stop with LayerError once `is_cancelled` returns True."""
    from layers.compression import CountingReader

    key = digests.short(layer.digest)
    _ = layer.compression  # refuses an unknown media type
    progress.begin(key, "unpacking", layer.size)

    def report(count: int) -> None:
        if is_cancelled():
            raise LayerError("unpacking a layer", layer.digest, "another layer failed")
        progress.advance(key, count)

    try:
        with store.open_blob(layer.digest) as blob:
            pending.run(CountingReader(blob, report), diff_id)
    except LayerError as error:
        if error.subject or isinstance(error, NotFound):
            raise
        raise type(error)(error.what, layer.digest, error.why, hint=error.hint) from None
    progress.end(key, "done")


def _mount_sources(store: Store, reference: Reference) -> dict[Digest, str]:
    """Blob -> another repository of the same registry that has it, for cross-repository mounts, as the store knows."""
    found: dict[Digest, str] = {}
    for image in store.list_images():
        try:
            other = references.parse(image.name)
            item = store.read_manifest(image.descriptor)
        except LayerError:
            continue
        if other.registry == reference.registry and isinstance(item, Manifest):
            for blob in (item.config, *item.layers):
                found.setdefault(blob.digest, other.repository)
    return found


async def push_manifest(
    store: Store,
    registry: Registry,
    descriptor: Descriptor,
    target: str,
    progress: Progress,
    mount_sources: Mapping[Digest, str] | None = None,
) -> Digest:
    """Send a manifest of the store, after the blobs it refers to. `mount_sources` are the repositories of the same
    registry that have blobs. Raises: LayerError and its subclasses."""
    import trio

    mounted_from = mount_sources or {}

    data = store.read_blob(descriptor.digest)
    item = manifests.parse(data, descriptor.media_type)
    if isinstance(item, Index):
        raise Refused("pushing", descriptor.digest, "an index within an index")
    transfers = trio.CapacityLimiter(_TRANSFERS)

    def job(blob: Descriptor) -> Callable[[], Awaitable[None]]:
        async def run() -> None:
            key = digests.short(blob.digest)
            async with transfers:
                with store.open_blob(blob.digest) as file:
                    progress.begin(key, "pushing", blob.size)
                    outcome = await registry.push_blob(
                        blob, file, lambda count: progress.advance(key, count), mounted_from.get(blob.digest, "")
                    )
                    progress.end(key, outcome)

        return run

    blobs = {blob.digest: blob for blob in (*item.layers, item.config)}
    await run_concurrently([job(blob) for blob in blobs.values()])
    return await registry.put_manifest(target, data, item.media_type)
