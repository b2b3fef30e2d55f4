"""Pull and push against a real registry; skopeo and umoci say whether the result is right."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from layers import digest as digests
from layers import image, registry
from layers import manifest as manifests
from layers import reference as references
from layers.credentials import Credentials
from layers.endpoints import Endpoint, Wishes
from layers.errors import AuthError, NotFound, RegistryError
from layers.image import Remote
from layers.manifest import Descriptor, parse_platform
from layers.registry import Registry
from layers.session import Session
from layers.store import Store
from tests.layers import images, registries, trees
from tests.layers.fault_proxy import FaultProxy
from tests.support import process
from unionfs.__main__ import main

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="layers with other owners need root")

BASE = trees.tar_of([("./", {"type": b"5", "mode": 0o755}, b""), ("a", {"uid": 5}, b"one"), ("b", {}, b"gone")])
TOP = trees.tar_of([("c/", {"type": b"5", "mode": 0o711}, b""), ("c/d", {}, os.urandom(300_000)), (".wh.b", {}, b"")])
GIVEN = Credentials(registries.NAME, registries.PASSWORD)


@pytest.fixture(scope="module")
def open_registry(run_dir: Path) -> Iterator[registries.Registry]:
    with registries.Registry(run_dir / "registry-open") as started:
        yield started


@pytest.fixture
def given(scratch: Path) -> Path:
    """An image as an OCI layout."""
    images.layout(scratch / "given", [BASE, TOP], settings={"Cmd": ["/a"], "Env": ["A=b"]})
    return scratch / "given"


def upload(layout: Path, host: str, name: str, *options: str) -> None:
    registries.need("skopeo")
    command = ["skopeo", "copy", "--dest-tls-verify=false", *options, f"oci:{layout}:t", f"docker://{host}/{name}"]
    process.run(command)


def pull(store: Store, text: str, remote: Remote | None = None) -> image.Pulled:
    return trio.run(functools.partial(image.pull, store, text, remote=remote))


def push(store: Store, text: str, to: str, remote: Remote | None = None) -> str:
    return trio.run(functools.partial(image.push, store, text, to, remote=remote))


def test_an_image_pushed_by_skopeo_is_pulled(open_registry: registries.Registry, given: Path, scratch: Path) -> None:
    upload(given, open_registry.host, "some/image:1")
    store = Store(str(scratch / "root"))
    pulled = pull(store, f"{open_registry.host}/some/image:1")
    ready = image.resolve(store, f"{open_registry.host}/some/image:1")
    assert pulled.new
    assert ready.config.settings.cmd == ("/a",)
    top, bottom = map(Path, ready.lowers)
    assert trees.names(bottom) == ["a", "b"]
    assert (bottom / "a").stat().st_uid == 5
    assert trees.names(top) == [".wh.b", "c", "c/d"]
    assert not pull(store, f"{open_registry.host}/some/image:1").new
    assert os.listdir(store.partial) == os.listdir(store.aside) == []


def test_pull_by_digest_and_by_name_and_digest(open_registry: registries.Registry, given: Path, scratch: Path) -> None:
    upload(given, open_registry.host, "by/digest:1")
    store = Store(str(scratch / "root"))
    digest = pull(store, f"{open_registry.host}/by/digest:1").digest
    assert pull(store, f"{open_registry.host}/by/digest@{digest}").digest == digest
    assert image.resolve(store, f"{open_registry.host}/by/digest@{digest}").descriptor.digest == digest
    assert image.resolve(store, digest[7:19]).descriptor.digest == digest
    with pytest.raises(NotFound):
        pull(store, f"{open_registry.host}/by/digest@sha256:{'0' * 64}")
    with pytest.raises(NotFound):
        pull(store, f"{open_registry.host}/by/digest:2")


def test_what_we_push_skopeo_and_umoci_read(open_registry: registries.Registry, given: Path, scratch: Path) -> None:
    registries.need("skopeo", "umoci")
    upload(given, open_registry.host, "a/b:1")
    store = Store(str(scratch / "root"))
    pull(store, f"{open_registry.host}/a/b:1")
    push(store, f"{open_registry.host}/a/b:1", f"{open_registry.host}/pushed/here:2")
    back = f"oci:{scratch / 'back'}:t"
    process.run(["skopeo", "copy", "--src-tls-verify=false", f"docker://{open_registry.host}/pushed/here:2", back])
    process.run(["umoci", "unpack", "--image", f"{scratch / 'back'}:t", scratch / "bundle"])
    assert trees.names(scratch / "bundle" / "rootfs") == ["a", "c", "c/d"]
    assert (scratch / "bundle/rootfs/a").stat().st_uid == 5
    # In place: the store is an OCI layout.
    name = f"{store.images}:{open_registry.host}/a/b:1"
    said = json.loads(process.run(["skopeo", "inspect", f"oci:{name}"]).stdout)
    assert len(said["Layers"]) == 2
    process.run(["skopeo", "copy", f"oci:{given}:t", f"oci:{store.images}:written/by/skopeo:1"])
    assert image.resolve(store, "written/by/skopeo:1").config.settings.env == ("A=b",)


def test_blobs_are_pushed_once_and_mounted_across_repositories(
    open_registry: registries.Registry, given: Path, scratch: Path
) -> None:
    upload(given, open_registry.host, "mount/from:1")
    store = Store(str(scratch / "root"))
    pull(store, f"{open_registry.host}/mount/from:1")
    with FaultProxy(open_registry.host) as proxy:
        # The proxy is another registry to the store, so the origin is named by hand.
        layer = json.loads(store.read_blob(store.find(f"{open_registry.host}/mount/from:1").descriptor.digest))[
            "layers"
        ][0]
        blob = Descriptor(layer["mediaType"], layer["digest"], layer["size"])

        async def both() -> tuple[str, str]:
            reference = references.parse(f"{proxy.host}/mount/to:1")
            async with image.open_registries(reference, Remote(), to_push=True) as found:
                with store.open_blob(blob.digest) as file:
                    first = await found[0].push_blob(blob, file, lambda n: None, "mount/from")
                    return first, await found[0].push_blob(blob, file, lambda n: None)

        assert trio.run(both) == (registry.MOUNTED, registry.EXISTS)
        assert not [method for method, _, _ in proxy.requests if method in ("PATCH", "PUT")]


def test_an_upload_in_many_chunks(open_registry: registries.Registry, scratch: Path) -> None:
    data = os.urandom(1_000_001)
    (scratch / "blob").write_bytes(data)
    blob = Descriptor("application/octet-stream", digests.of(data), len(data))

    async def upload_it() -> str:
        async with Session(Endpoint(open_registry.host, "chunks", open_registry.host)) as session:
            with (scratch / "blob").open("rb") as file:
                return await Registry(session, "chunks", chunk=100_000).push_blob(blob, file, lambda n: None)

    assert trio.run(upload_it) == registry.PUSHED
    assert open_registry.scratch.joinpath("storage").exists()


def test_a_requested_password_is_sent(given: Path, scratch: Path) -> None:
    with registries.Registry(scratch / "registry", password=True) as locked:
        upload(given, locked.host, "x:1", f"--dest-creds={registries.NAME}:{registries.PASSWORD}")
        store = Store(str(scratch / "root"))
        with pytest.raises(AuthError, match="requires a user name"):
            pull(store, f"{locked.host}/x:1")
        with pytest.raises(AuthError, match="does not accept"):
            pull(store, f"{locked.host}/x:1", Remote(credentials=Credentials("mallory", "guess")))
        assert pull(store, f"{locked.host}/x:1", Remote(credentials=GIVEN)).new
        push(store, f"{locked.host}/x:1", f"{locked.host}/y:1", Remote(credentials=GIVEN))


def test_tls_is_verified(given: Path, scratch: Path) -> None:
    with registries.Registry(scratch / "registry", tls=True) as secure:
        upload(given, secure.host, "x:1")
        store = Store(str(scratch / "root"))
        with pytest.raises(RegistryError, match="not trusted"):
            pull(store, f"{secure.host}/x:1")
        trusting = Remote(Wishes(cert_dir=str(secure.certificates / "ca")))
        assert pull(store, f"{secure.host}/x:1", trusting).new
        blind = Remote(Wishes(tls_verify=False))
        assert not pull(store, f"{secure.host}/x:1", blind).new


def test_tokens_are_fetched_for_the_needed_scopes(given: Path, scratch: Path) -> None:
    keys = scratch / "keys"
    with (
        registries.TokenServer(keys) as tokens,
        registries.Registry(scratch / "registry", token_realm=tokens.realm, keys=keys) as bearer,
    ):
        upload(given, bearer.host, "t/x:1", f"--dest-creds={registries.NAME}:{registries.PASSWORD}")
        tokens.asked.clear()
        store = Store(str(scratch / "root"))
        with pytest.raises(AuthError):
            pull(store, f"{bearer.host}/t/x:1")
        tokens.asked.clear()
        pull(store, f"{bearer.host}/t/x:1", Remote(credentials=GIVEN))
        assert [asked["scope"] for asked in tokens.asked] == [["repository:t/x:pull"]]
        push(store, f"{bearer.host}/t/x:1", f"{bearer.host}/t/y:1", Remote(credentials=GIVEN))
        assert any("repository:t/y:pull,push" in asked["scope"] for asked in tokens.asked)
        tokens.asked.clear()
        pull(
            Store(str(scratch / "other")),
            f"{bearer.host}/t/y:1",
            Remote(credentials=Credentials(identity_token="identity")),
        )
        assert tokens.asked[0]["grant_type"] == ["refresh_token"]


def test_an_expired_token_is_renewed(given: Path, scratch: Path) -> None:
    keys = scratch / "keys"
    with (
        registries.TokenServer(keys, life_s=1) as tokens,
        registries.Registry(scratch / "registry", token_realm=tokens.realm, keys=keys) as bearer,
    ):
        upload(given, bearer.host, "t/x:1", f"--dest-creds={registries.NAME}:{registries.PASSWORD}")

        async def twice() -> int:
            reference = references.parse(f"{bearer.host}/t/x:1")
            async with image.open_registries(reference, Remote(credentials=GIVEN)) as found:
                await found[0].manifest("1")
                await trio.sleep(1.5)
                before = len(tokens.asked)
                await found[0].manifest("1")
                return len(tokens.asked) - before

        assert trio.run(twice) == 1


def test_an_index_is_resolved_by_platform(open_registry: registries.Registry, scratch: Path) -> None:
    registries.need("skopeo")
    entries = []
    for architecture in ("amd64", "arm64"):
        layout = scratch / architecture
        tar = trees.tar_of([(f"is-{architecture}", {}, b"")])
        digest = images.layout(layout, [tar])
        upload(layout, open_registry.host, f"multi:{architecture}")
        size = (layout / "blobs/sha256" / digest[7:]).stat().st_size
        kind = "application/vnd.oci.image.manifest.v1+json"
        platform = {"os": "linux", "architecture": architecture}
        entries.append({"mediaType": kind, "digest": digest, "size": size, "platform": platform})
    index = json.dumps(
        {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries}
    )

    async def put() -> None:
        async with image.open_registries(references.parse(f"{open_registry.host}/multi"), Remote()) as found:
            await found[0].put_manifest("all", index.encode(), "application/vnd.oci.image.index.v1+json")

    trio.run(put)
    store = Store(str(scratch / "root"))
    name = f"{open_registry.host}/multi:all"
    trio.run(functools.partial(image.pull, store, name, platform=parse_platform("arm64")))
    assert trees.names(Path(image.resolve(store, name).lowers[0])) == ["is-arm64"]
    with pytest.raises(NotFound, match="linux/s390x"):
        trio.run(functools.partial(image.pull, store, name, platform=parse_platform("linux/s390x")))


def test_tags_and_catalog_come_page_by_page(
    open_registry: registries.Registry, given: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tag in ("1", "2", "3", "4", "5"):
        upload(given, open_registry.host, f"paged:{tag}")
    monkeypatch.setattr(registry, "_PAGE", 2)

    async def both() -> tuple[list[str], list[str]]:
        async with image.open_registries(references.parse(f"{open_registry.host}/paged"), Remote()) as found:
            tags = [tag async for tag in found[0].tags()]
            return tags, [name async for name in registry.catalog(found[0].session)]

    tags, names = trio.run(both)
    assert sorted(tags) == ["1", "2", "3", "4", "5"]
    assert "paged" in names
    assert len(names) == len(set(names))


def test_referrers_are_kept_by_tag_where_there_is_no_api(
    open_registry: registries.Registry, given: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    upload(given, open_registry.host, "signed:1")

    async def sign() -> tuple[str, list[tuple[str, str]], int]:
        reference = references.parse(f"{open_registry.host}/signed")
        async with image.open_registries(reference, Remote(), to_push=True) as found:
            subject, _ = await found[0].manifest("1")
            for data in (b"{}", b"one", b"two"):
                path = open_registry.scratch / "empty"
                path.write_bytes(data)
                blob = Descriptor("application/octet-stream", digests.of(data), len(data))
                with path.open("rb") as file:
                    await found[0].push_blob(blob, file, lambda n: None)
            for data in (b"one", b"two"):
                manifest = manifests.Manifest(
                    manifests.OCI_MANIFEST,
                    Descriptor(manifests.OCI_EMPTY, digests.of(b"{}"), 2),
                    (Descriptor("text/plain", digests.of(data), len(data)),),
                    subject=subject,
                    artifact_type="application/vnd.test",
                )
                said = manifests.to_json(manifest)
                await found[0].put_manifest(digests.of(said), said, manifest.media_type)
            listed = await found[0].referrers(subject.digest, "application/vnd.test")
            others = await found[0].referrers(subject.digest, "application/vnd.other")
            return subject.digest, [(entry.artifact_type, entry.digest) for entry in listed], len(others)

    _, listed, others = trio.run(sign)
    assert [kind for kind, _ in listed] == ["application/vnd.test"] * 2
    assert others == 0
    assert main(["search", "--referrers", f"{open_registry.host}/signed:1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(lines) == sorted(f"{digest} application/vnd.test" for _, digest in listed)


def test_a_mirror_is_tried_first_and_skipped_if_it_fails(
    open_registry: registries.Registry, given: Path, scratch: Path
) -> None:
    upload(given, open_registry.host, "mirrored:1")
    with FaultProxy(open_registry.host) as mirror:
        remote = Remote(Wishes(mirrors=(mirror.host,)))
        assert pull(Store(str(scratch / "one")), f"{open_registry.host}/mirrored:1", remote).new
        assert [path for method, path, _ in mirror.requests if "/blobs/" in path]
        mirror.change = lambda method, path, answer: (500, {"Content-Length": "0"}, b"")
        remote = Remote(Wishes(mirrors=(mirror.host,)), pause_s=0.01)
        assert pull(Store(str(scratch / "two")), f"{open_registry.host}/mirrored:1", remote).new
