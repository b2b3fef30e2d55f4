"""Broken connections, lying registries, full disks, killed processes: nothing half shows, and a second try succeeds."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from layers import digest as digests
from layers import gc, image, unpacked
from layers import reference as references
from layers.errors import LayerError, NotFound, Refused
from layers.image import Remote
from layers.manifest import Descriptor
from layers.registry import PUSHED, Registry
from layers.store import Store
from tests.layers import images, registries, trees
from tests.layers.fault_proxy import Answer, FaultProxy
from tests.support import process
from tests.support.timing import limit

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="layers with other owners, and small filesystems, need root"),
    # When a connection breaks, httpx leaves its own generators to the garbage collector; the connection is closed.
    pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning"),
]

NOW = Remote(pause_s=0.01)
BIG = trees.tar_of([("big", {}, os.urandom(900_000)), ("small", {}, b"x")])
TOP = trees.tar_of([("top", {}, os.urandom(50_000))])


@pytest.fixture(scope="module")
def origin(run_dir: Path) -> Iterator[registries.Registry]:
    """A registry that has the image x:1."""
    registries.need("skopeo")
    images.layout(run_dir / "faults-given", [BIG, TOP])
    with registries.Registry(run_dir / "registry-faults") as started:
        target = f"docker://{started.host}/x:1"
        process.run(["skopeo", "copy", "--dest-tls-verify=false", f"oci:{run_dir / 'faults-given'}:t", target])
        yield started


@pytest.fixture
def proxy(origin: registries.Registry) -> Iterator[FaultProxy]:
    with FaultProxy(origin.host) as started:
        started.storage = origin.scratch / "storage"
        yield started


def pull(store: Store, host: str) -> image.Pulled:
    return trio.run(functools.partial(image.pull, store, f"{host}/x:1", remote=NOW))


def assert_nothing_half(store: Store) -> None:
    """Whatever failed: no name, no layer that is not whole, nothing being built."""
    assert store.list_images() == []
    assert os.listdir(store.aside) == []
    for key in os.listdir(store.layers):
        assert unpacked.verify(store, key) == []
    for name in os.listdir(os.path.join(store.images, "blobs", "sha256")):
        assert images.digest(Path(store.images, "blobs/sha256", name).read_bytes()) == f"sha256:{name}"


def _fails_then_succeeds(proxy: FaultProxy, scratch: Path, change: Callable[[str, Answer], Answer | None]) -> None:
    """A pull through a proxy that changes answers fails and leaves nothing half; without the changes it succeeds."""
    store = Store(str(scratch / "root"))
    proxy.change = lambda method, path, answer: change(path, answer)
    with pytest.raises(LayerError):
        pull(store, proxy.host)
    assert_nothing_half(store)
    proxy.change = lambda method, path, answer: answer
    pull(store, proxy.host)
    assert_whole(store, proxy.host)


def assert_whole(store: Store, host: str) -> None:
    ready = image.resolve(store, f"{host}/x:1")
    assert [trees.names(Path(lower)) for lower in ready.lowers] == [["top"], ["big", "small"]]
    assert all(unpacked.verify(store, key) == [] for key in os.listdir(store.layers))
    assert os.listdir(store.partial) == os.listdir(store.aside) == []


def test_an_interrupted_download_is_resumed(proxy: FaultProxy, scratch: Path) -> None:
    store = Store(str(scratch / "root"))
    proxy.cut_answer = lambda method, path: 300_000 if "/blobs/" in path else None
    pull(store, proxy.host)
    assert_whole(store, proxy.host)
    ranges = [headers["Range"] for method, path, headers in proxy.requests if "Range" in headers]
    assert [int(asked.removeprefix("bytes=").partition("-")[0]) for asked in ranges] == [300_000, 600_000, 900_000]


@pytest.mark.parametrize("stage", ["/v2/", "/manifests/", "/blobs/"])
def test_a_connection_that_is_cut_at_any_stage_of_a_pull(proxy: FaultProxy, scratch: Path, stage: str) -> None:
    _fails_then_succeeds(proxy, scratch, lambda path, answer: None if stage in path else answer)


def test_a_failed_pull_is_resumed(proxy: FaultProxy, scratch: Path) -> None:
    store = Store(str(scratch / "root"))
    proxy.cut_answer = lambda method, path: 400_000 if "/blobs/" in path else None
    proxy.change = lambda method, path, answer: None if answer[0] == 206 else answer
    with pytest.raises(LayerError):
        pull(store, proxy.host)
    assert_nothing_half(store)
    proxy.cut_answer = lambda method, path: None
    proxy.change = lambda method, path, answer: answer
    proxy.requests.clear()
    pull(store, proxy.host)
    assert_whole(store, proxy.host)
    assert any(headers.get("Range", "").startswith("bytes=400000-") for _, _, headers in proxy.requests)


def _changed(path: str, answer: Answer, kind: str) -> Answer | None:
    status, headers, body = answer
    if kind == "manifest" and "/manifests/" in path:
        return status, headers, body.replace(b"rootfs", b"r00tfs").replace(b"layers", b"layerz")
    if kind == "manifest of 10 GB" and "/manifests/" in path:
        return status, headers | {"Content-Length": str(10 << 30)}, b" " * (5 << 20)
    if kind == "type" and "/manifests/" in path:
        return (
            status,
            {k: v for k, v in headers.items() if k != "Content-Type"} | {"Content-Type": "text/x-nonsense"},
            body,
        )
    if "/blobs/" not in path or len(body) < 40_000:
        return answer
    if kind == "content":
        return status, headers, body[:1000] + bytes([body[1000] ^ 1]) + body[1001:]
    if kind == "longer":
        return status, headers | {"Content-Length": str(len(body) + 5)}, body + b"extra"
    if kind == "shorter":
        return status, headers | {"Content-Length": str(len(body) - 5)}, body[:-5]
    if kind == "empty":
        return status, headers | {"Content-Length": "0"}, b""
    if kind == "other range":
        return 206, headers | {"Content-Range": f"bytes 7-{len(body) - 1}/{len(body)}"}, body
    return answer


@pytest.mark.parametrize("kind", ["manifest", "manifest of 10 GB", "type", "content", "longer", "empty", "other range"])
def test_wrong_answers_of_a_registry_are_refused(proxy: FaultProxy, scratch: Path, kind: str) -> None:
    _fails_then_succeeds(proxy, scratch, lambda path, answer: _changed(path, answer, kind))


def test_a_wrong_partial_download_is_discarded(proxy: FaultProxy, scratch: Path) -> None:
    store = Store(str(scratch / "root"))
    store.prepare()
    for blob in Path(proxy.storage, "docker/registry/v2/blobs/sha256").glob("*/*/data"):
        data = blob.read_bytes()
        if len(data) < 10_000:
            continue  # manifests do not come as blobs
        Path(store.partial, images.digest(data)[7:]).write_bytes(bytes(len(data) // 2))
    pull(store, proxy.host)
    assert_whole(store, proxy.host)


def test_the_rest_of_a_short_answer_is_requested(proxy: FaultProxy, scratch: Path) -> None:
    store = Store(str(scratch / "root"))
    proxy.change = lambda method, path, answer: _changed(path, answer, "shorter")
    pull(store, proxy.host)
    assert_whole(store, proxy.host)


def test_after_a_wrong_range_the_whole_blob_is_requested(proxy: FaultProxy, scratch: Path) -> None:
    store = Store(str(scratch / "root"))
    cuts = iter([100_000])
    proxy.cut_answer = lambda method, path: next(cuts, None) if "/blobs/" in path else None

    def change(method: str, path: str, answer: Answer) -> Answer | None:
        status, headers, body = answer
        if status == 206:
            return status, headers | {"Content-Range": "bytes 0-1/2"}, body
        return answer

    proxy.change = change
    pull(store, proxy.host)
    assert_whole(store, proxy.host)


def test_a_request_to_a_busy_registry_is_repeated(proxy: FaultProxy, scratch: Path) -> None:
    store = Store(str(scratch / "root"))
    busy = iter([429, 503, 502, 429])

    def change(method: str, path: str, answer: Answer) -> Answer | None:
        status = next(busy, None)
        return answer if status is None else (status, {"Content-Length": "0", "Retry-After": "0"}, b"")

    proxy.change = change
    pull(store, proxy.host)
    assert_whole(store, proxy.host)


@pytest.mark.parametrize("stage", ["POST", "PATCH", "PUT", "never answered"])
def test_a_broken_upload_is_resumed(proxy: FaultProxy, scratch: Path, stage: str) -> None:
    data = os.urandom(700_000)
    (scratch / "blob").write_bytes(data)
    blob = Descriptor("application/octet-stream", digests.Digest(images.digest(data)), len(data))
    cuts = iter([100_000, 0, 50_000])
    breaks = iter([True, True])
    if stage == "PATCH":
        proxy.cut_request = lambda method, path: next(cuts, None) if method == "PATCH" else None
    elif stage == "never answered":
        proxy.change = lambda method, path, answer: None if method == "PATCH" and next(breaks, False) else answer
    else:
        proxy.change = lambda method, path, answer: None if method == stage and next(breaks, False) else answer
    sent: list[int] = []

    async def upload() -> str:
        reference = references.parse(f"{proxy.host}/uploads/{stage.lower().replace(' ', '-')}")
        async with image.open_registries(reference, NOW, to_push=True) as found:
            with (scratch / "blob").open("rb") as file:
                registry = Registry(found[0].session, found[0].repository, chunk=200_000)
                outcome = await registry.push_blob(blob, file, sent.append)
                assert await registry.has_blob(blob.digest)
                return outcome

    assert trio.run(upload) in (PUSHED, "exists")
    if stage == "PATCH":
        assert sum(sent) == len(data)


def test_an_upload_whose_place_was_lost_begins_again(proxy: FaultProxy, scratch: Path) -> None:
    data = os.urandom(500_000)
    (scratch / "blob").write_bytes(data)
    blob = Descriptor("application/octet-stream", digests.Digest(images.digest(data)), len(data))
    lost = iter([False, True, True])

    def change(method: str, path: str, answer: Answer) -> Answer | None:
        if "/uploads/" in path and method in ("PATCH", "GET") and next(lost, False):
            return 404, {"Content-Length": "0"}, b""
        return answer

    proxy.change = change

    async def upload() -> bool:
        async with image.open_registries(references.parse(f"{proxy.host}/lost/upload"), NOW, to_push=True) as found:
            with (scratch / "blob").open("rb") as file:
                registry = Registry(found[0].session, found[0].repository, chunk=200_000)
                await registry.push_blob(blob, file, lambda count: None)
                return await registry.has_blob(blob.digest)

    assert trio.run(upload)


def test_a_full_disk_leaves_nothing(proxy: FaultProxy, scratch: Path) -> None:
    small = scratch / "small"
    small.mkdir()
    process.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", small])
    store = Store(str(small / "root"))
    with pytest.raises(OSError, match="No space left"):
        pull(store, proxy.host)
    assert_nothing_half(store)
    process.run(["mount", "-o", "remount,size=20m", small])
    pull(store, proxy.host)
    assert_whole(store, proxy.host)


_PULLER = """
import sys, functools, trio
from layers import image
from layers.store import Store
trio.run(functools.partial(image.pull, Store(sys.argv[1]), sys.argv[2]))
"""


def _child(code: str, *arguments: str) -> subprocess.Popen[bytes]:
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    return subprocess.Popen([sys.executable, "-c", code, *arguments], env=env)


def test_two_processes_pull_the_same_image_at_once(proxy: FaultProxy, scratch: Path) -> None:
    root = str(scratch / "root")
    children = [_child(_PULLER, root, f"{proxy.host}/x:1") for _ in range(3)]
    assert [child.wait(timeout=limit(120)) for child in children] == [0, 0, 0]
    assert_whole(Store(root), proxy.host)
    fetched = [path for method, path, _ in proxy.requests if method == "GET" and "/blobs/" in path]
    assert len(fetched) == len(set(fetched)) == 3


def test_a_store_can_be_made_while_another_process_sweeps_it(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(scratch / "root"))
    swept: list[list[str]] = []

    def fsync(fd: int) -> None:
        if len(swept) < 3:
            swept.append(os.listdir(store.aside))
            store.sweep_aside()

    monkeypatch.setattr("layers.store.os.fsync", fsync)
    store.prepare()
    assert [len(names) for names in swept] == [1, 1, 1]
    assert (store.list_images(), os.listdir(store.aside)) == ([], [])
    assert sorted(os.listdir(store.images)) == ["blobs", "index.json", "oci-layout"]


@pytest.mark.parametrize("after", range(4))
def test_a_killed_pull_leaves_no_partial_image(proxy: FaultProxy, scratch: Path, after: int) -> None:
    store = Store(str(scratch / "root"))
    child = _child(_PULLER, store.root, f"{proxy.host}/x:1")
    killed = threading.Event()

    def change(method: str, path: str, answer: Answer) -> Answer | None:
        if len(proxy.requests) > after:
            child.send_signal(signal.SIGKILL)
            killed.set()
        return answer

    proxy.change = change
    assert killed.wait(timeout=limit(60))
    child.wait()
    proxy.change = lambda method, path, answer: answer
    store.prepare()
    for key in os.listdir(store.layers):
        assert unpacked.verify(store, key) == []
    with pytest.raises(NotFound):
        image.resolve(store, f"{proxy.host}/x:1")
    pull(store, proxy.host)
    assert_whole(store, proxy.host)


def test_gc_frees_exactly_unreferenced_blobs_and_layers(proxy: FaultProxy, scratch: Path) -> None:
    store = Store(str(scratch / "root"))
    pull(store, proxy.host)
    images.layout(scratch / "other", [BIG, trees.tar_of([("else", {}, b"")])])
    process.run(["skopeo", "copy", f"oci:{scratch / 'other'}:t", f"oci:{store.images}:other:1"])
    other = image.resolve(store, "other:1")
    assert gc.collect(store) == gc.Freed()
    blobs = set(os.listdir(Path(store.images, "blobs/sha256")))
    store.untag(f"{proxy.host}/x:1")
    freed = gc.collect(store)
    assert len(freed.blobs) == 3  # manifest, configuration and the upper layer; the lower one is shared
    assert len(freed.layers) == 1
    assert set(os.listdir(Path(store.images, "blobs/sha256"))) == blobs - {
        b.removeprefix("sha256:") for b in freed.blobs
    }
    assert image.resolve(store, "other:1") == other
    store.untag("other:1")
    used = gc.collect(store, in_use=[other.lowers[0]])
    assert len(used.layers) == 1
    assert trees.names(Path(other.lowers[0])) == ["else"]
    assert len(gc.collect(store).layers) == 1


def test_gc_is_refused_while_a_process_adds(scratch: Path) -> None:
    store = Store(str(scratch / "root"))
    with store.adding(), pytest.raises(gc.Busy):
        gc.collect(store)
    assert gc.collect(store) == gc.Freed()


_COLLECTOR = """
import sys, os
from layers import gc, store
remaining = int(sys.argv[2])
def dying(function):
    def call(*arguments, **named):
        global remaining
        remaining -= 1
        if remaining < 0:
            os.kill(os.getpid(), 9)
        return function(*arguments, **named)
    return call
os.unlink, os.rmdir, os.rename = dying(os.unlink), dying(os.rmdir), dying(os.rename)
gc.collect(store.Store(sys.argv[1]))
"""


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5, 8])
def test_a_killed_gc_keeps_named_images_and_can_be_repeated(proxy: FaultProxy, scratch: Path, steps: int) -> None:
    store = Store(str(scratch / "root"))
    pull(store, proxy.host)
    images.layout(scratch / "other", [TOP])
    process.run(["skopeo", "copy", f"oci:{scratch / 'other'}:t", f"oci:{store.images}:other:1"])
    kept = image.resolve(store, "other:1")
    store.untag(f"{proxy.host}/x:1")
    child = _child(_COLLECTOR, store.root, str(steps))
    assert child.wait(timeout=limit(60)) == -signal.SIGKILL
    assert image.resolve(store, "other:1") == kept
    gc.collect(store)
    assert sorted(os.listdir(store.layers)) == [Path(kept.lowers[0]).parent.name]
    assert len(os.listdir(Path(store.images, "blobs/sha256"))) == 3
    assert os.listdir(store.aside) == []
    assert unpacked.verify(store, Path(kept.lowers[0]).parent.name) == []


def test_a_layer_that_is_not_its_diff_id_is_refused(scratch: Path) -> None:
    store = Store(str(scratch / "root"))
    images.layout(Path(store.images), [TOP], name="forged:1")
    manifest = json.loads(store.read_blob(store.find("forged:1").descriptor.digest))
    other, size = images.put(Path(store.images), BIG)
    manifest["layers"] = [{"mediaType": manifest["layers"][0]["mediaType"], "digest": other, "size": size}]
    digest, size = images.put(Path(store.images), json.dumps(manifest).encode())
    with store.adding():
        store.tag(Descriptor("application/vnd.oci.image.manifest.v1+json", digests.Digest(digest), size), "forged:2")
    with pytest.raises(Refused, match="the image says"):
        image.resolve(store, "forged:2")
    assert os.listdir(store.layers) == os.listdir(store.aside) == []
