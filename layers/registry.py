"""The distribution API: manifests, blobs, uploads, tags, catalog, referrers of one registry.

OCI distribution specification 1.1. Knows digests and descriptors, and `session` for HTTP. Does not know the store:
blobs come from and go to files that the caller has opened.

Answers are untrusted: digests, sizes, ranges and headers are compared, and a blob with another digest is refused.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import IO, Final
from urllib.parse import quote, urlencode

import httpx

from layers import digest as digests
from layers import manifest as manifests
from layers.connection import linked
from layers.digest import Digest
from layers.errors import AuthError, Malformed, NotFound, Refused, RegistryError
from layers.manifest import INDEX_TYPES, MANIFEST_TYPES, MAX_MANIFEST, OCI_INDEX, Descriptor, Index
from layers.session import Session
from layers.transfer import CHUNK, OnBytes, Upload, download

_PAGE: Final = 500  # names requested at once; registries may send fewer
_PAGES_MAX: Final = 10_000
_ACCEPT: Final = ", ".join((*MANIFEST_TYPES, *INDEX_TYPES))

EXISTS: Final = "exists"
MOUNTED: Final = "mounted"
PUSHED: Final = "pushed"


class Registry:
    """One repository of one registry."""

    def __init__(self, session: Session, repository: str, *, chunk: int = CHUNK) -> None:
        self.session = session
        self.repository = repository
        self._chunk = chunk
        self._pull = f"repository:{repository}:pull"
        self._push = f"repository:{repository}:pull,push"

    # -- manifests --

    async def manifest(self, target: str) -> tuple[Descriptor, bytes]:
        """Fetch the manifest or index of a tag or digest, and verify it. Raises: NotFound, Refused, RegistryError."""
        answer = await self.session.request(
            "GET",
            self._url("manifests", target),
            scope=self._pull,
            headers={"Accept": _ACCEPT},
            limit=MAX_MANIFEST,
        )
        shown = self._named(target)
        self.session.expect(answer, "pulling", shown, 200)
        data = answer.content
        wanted = Digest(target) if ":" in target else _claimed(answer)
        actual = digests.of(data)
        if wanted is not None:
            hash_ = digests.hasher(wanted)
            hash_.update(data)
            actual = digests.finished(wanted, hash_)
            if actual != wanted:
                raise Refused("pulling", shown, f"the registry sent another manifest, {actual}, than {wanted}")
        media_type = answer.headers.get("Content-Type", "").partition(";")[0].strip()
        item = manifests.parse(data, media_type)
        return Descriptor(item.media_type, actual, len(data)), data

    async def put_manifest(self, target: str, data: bytes, media_type: str) -> Digest:
        """Store a manifest or index under a tag or its digest. Raises: RegistryError, AuthError."""
        shown = self._named(target)
        answer = await self.session.request(
            "PUT",
            self._url("manifests", target),
            scope=self._push,
            headers={"Content-Type": media_type},
            content=data,
        )
        self.session.expect(answer, "pushing", shown, 200, 201, 202, 204)
        digest = digests.of(data)
        claimed = _claimed(answer)
        if claimed is not None and claimed != digest:
            raise Refused("pushing", shown, f"the registry says it stored {claimed}, we sent {digest}")
        item = manifests.parse(data, media_type)
        subject = None if isinstance(item, Index) else item.subject
        if subject is not None and "OCI-Subject" not in answer.headers:
            await self._add_referrer(subject.digest, _as_referrer(data, media_type))
        return digest

    # -- blobs --

    async def fetch(self, blob: Descriptor, file: IO[bytes], on_bytes: OnBytes) -> None:
        """Download the blob into `file`; see `transfer.download`."""
        await download(self.session, self._url("blobs", blob.digest), self._pull, blob, file, on_bytes)

    async def push_blob(self, blob: Descriptor, file: IO[bytes], on_bytes: OnBytes, mount_from: str = "") -> str:
        """Put a blob into the repository; returns EXISTS, MOUNTED or PUSHED.

        `mount_from` is another repository of the same registry that may have it. Raises: RegistryError, AuthError.
        """
        if await self.has_blob(blob.digest):
            return EXISTS
        begin = f"/v2/{self.repository}/blobs/uploads/"
        answer = None
        if mount_from and mount_from != self.repository:
            answer = await self._mounted(begin, blob.digest, mount_from)
            if answer is not None and answer.status_code == 201:
                return MOUNTED
        if answer is None:
            answer = await self.session.request("POST", begin, scope=self._push, content=b"")
            self.session.expect(answer, "pushing a blob", blob.digest, 202)
        upload = Upload(self.session, begin, self._push, blob, file, on_bytes, self._chunk)
        return PUSHED if await upload.run(answer) else EXISTS

    async def has_blob(self, digest: Digest) -> bool:
        """Whether the repository has the blob; False if the registry refuses to say, since it may accept an upload."""
        try:
            answer = await self.session.request("HEAD", self._url("blobs", digest), scope=self._push)
        except (AuthError, RegistryError):
            return False
        return answer.status_code == 200

    async def _mounted(self, begin: str, digest: Digest, mount_from: str) -> httpx.Response | None:
        """Ask to mount a blob from another repository; returns the answer (201, or 202, which opens an upload). None if
        that fails in any way: mounting only saves an upload."""
        scope = f"{self._push} repository:{mount_from}:pull"
        query = urlencode({"mount": digest, "from": mount_from})
        try:
            answer = await self.session.request("POST", f"{begin}?{query}", scope=scope, content=b"", retry=False)
        except (AuthError, RegistryError):
            return None
        return answer if answer.status_code in (201, 202) else None

    # -- lists --

    async def tags(self) -> AsyncIterator[str]:
        """All tags of the repository. Raises: NotFound, RegistryError, AuthError."""
        async for tag in self._listed(f"/v2/{self.repository}/tags/list", "tags", self._pull):
            yield tag

    async def referrers(self, digest: Digest, artifact_type: str = "") -> tuple[Descriptor, ...]:
        """The manifests that refer to a manifest, such as signatures; by the API, or without one by the referrers tag
        (distribution specification, "Referrers Tag Schema")."""
        query = "?" + urlencode({"artifactType": artifact_type}) if artifact_type else ""
        url = f"/v2/{self.repository}/referrers/{digest}{query}"
        answer = await self.session.request("GET", url, scope=self._pull, limit=MAX_MANIFEST)
        if answer.status_code == 404:
            found = (await self._referrers_by_tag(digest)).manifests
        else:
            self.session.expect(answer, "listing referrers", digest, 200)
            item = manifests.parse(answer.content, OCI_INDEX)
            if not isinstance(item, Index):
                raise Refused("listing referrers", digest, "the registry sent no index")
            found = item.manifests
        return tuple(entry for entry in found if artifact_type in ("", entry.artifact_type))

    async def _referrers_by_tag(self, digest: Digest) -> Index:
        try:
            _, data = await self.manifest(_referrers_tag(digest))
        except NotFound:
            return Index(OCI_INDEX, ())
        item = manifests.parse(data)
        return item if isinstance(item, Index) else Index(OCI_INDEX, ())

    async def _add_referrer(self, subject: Digest, referrer: Descriptor) -> None:
        known = await self._referrers_by_tag(subject)
        if any(entry.digest == referrer.digest for entry in known.manifests):
            return
        index = Index(OCI_INDEX, (*known.manifests, referrer))
        await self.put_manifest(_referrers_tag(subject), manifests.to_json(index), OCI_INDEX)

    async def _listed(self, path: str, key: str, scope: str) -> AsyncIterator[str]:
        async for item in listed(self.session, path, key, scope):
            yield item

    def _named(self, target: str) -> str:
        """A tag or digest of the repository, in words."""
        return f"{self.session.endpoint.registry}/{self.repository}{'@' if ':' in target else ':'}{target}"

    def _url(self, kind: str, target: str) -> str:
        return f"/v2/{self.repository}/{kind}/{quote(target, safe=':')}"


async def catalog(session: Session) -> AsyncIterator[str]:
    """The repositories of a registry, if it lists them. Raises: NotFound, RegistryError, AuthError."""
    async for name in listed(session, "/v2/_catalog", "repositories", "registry:catalog:*"):
        yield name


async def listed(session: Session, path: str, key: str, scope: str) -> AsyncIterator[str]:
    """The items of a list that comes in pages (distribution specification, "Listing Tags")."""
    url = f"{path}?n={_PAGE}"
    seen: set[str] = set()
    shown = f"{session.endpoint.registry}/{path.removeprefix('/v2/')}"
    while url not in seen:
        if len(seen) >= _PAGES_MAX:
            raise RegistryError("listing", shown, f"more than {_PAGES_MAX} pages")
        seen.add(url)
        answer = await session.request("GET", url, scope=scope, limit=MAX_MANIFEST)
        session.expect(answer, "listing", shown, 200)
        items = manifests.load_json(answer.content, "reading a list").get(key) or []
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise Refused("reading a list", shown, f"{key} is not a list of strings")
        for item in items:
            yield item
        following = answer.links.get("next", {}).get("url")
        if following is None:
            return
        # Only path and query are used: a registry may give another host name than the one it is reached by.
        url = "/" + linked(answer, following).raw_path.decode("ascii").lstrip("/")


def _claimed(answer: httpx.Response) -> Digest | None:
    """The digest in the Docker-Content-Digest header, or None."""
    text = answer.headers.get("Docker-Content-Digest")
    try:
        return None if text is None else digests.parse(text)
    except Malformed:
        return None


def _referrers_tag(digest: Digest) -> str:
    return f"{digests.algorithm(digest)}-{digests.encoded(digest)[:64]}"


def _as_referrer(data: bytes, media_type: str) -> Descriptor:
    """The entry of an index for a manifest that has a subject (distribution specification, "Pushing Manifests")."""
    item = manifests.parse(data, media_type)
    assert not isinstance(item, Index)
    kind = item.artifact_type or item.config.media_type
    return Descriptor(media_type, digests.of(data), len(data), item.annotations, artifact_type=kind)
