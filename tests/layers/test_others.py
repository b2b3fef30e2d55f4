"""Images that other tools make are ready for us, and stores that other tools write to stay whole."""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import trio

from layers import gc, image, make_image
from layers import manifest as manifests
from layers.credentials import Credentials
from layers.errors import LayerError
from layers.store import Store
from tests.layers import images, registries, trees
from tests.layers.http_server import Handler, HttpServer
from tests.support import process
from tests.support.timing import limit

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="files of other owners need root")

ROOTFS = trees.tar_of(
    [
        ("a", {"uid": 7}, b"one"),
        ("dir", {"type": b"5", "mode": 0o750}, b""),
        ("dir/gone", {}, b"x"),
        ("dir/kept", {}, b"y"),
        ("all/x", {}, b""),
    ]
)


def merged(store: Store, name: str) -> dict[bytes, object]:
    """What an image shows, as our own squash sees it."""
    from layers.pack import merged_items, pack
    from layers.tree import LayerTrees

    sink = io.BytesIO()
    with LayerTrees() as branches:
        pack(merged_items(branches.view(image.resolve(store, name).lowers)), sink, "none")
    out = Path(store.root) / "merged"
    shutil.rmtree(out, ignore_errors=True)
    trees.unpacked(sink.getvalue(), out)
    return {path: told[:6] for path, told in trees.told(out, directory_times=False).items() if path}


def test_umoci_works_in_the_store(scratch: Path) -> None:
    registries.need("umoci")
    store = Store(str(scratch / "root"))
    make_image.import_tar(store, io.BytesIO(ROOTFS), make_image.ImageOptions(name="docker.io/library/x:1"))
    name = f"{store.images}:docker.io/library/x:1"
    process.run(["umoci", "unpack", "--image", name, scratch / "bundle"])
    rootfs = scratch / "bundle/rootfs"
    (rootfs / "dir/gone").unlink()
    shutil.rmtree(rootfs / "all")
    (rootfs / "new").write_bytes(b"new")
    os.setxattr(rootfs / "new", "user.x", b"1")
    os.utime(rootfs / "new", (1_700_000_000, 1_700_000_000))  # umoci keeps whole seconds
    os.chown(rootfs / "a", 8, 9)
    process.run(["umoci", "repack", "--image", f"{store.images}:docker.io/library/x:2", scratch / "bundle"])
    wanted = {path: told[:6] for path, told in trees.told(rootfs, directory_times=False).items() if path}
    assert merged(store, "x:2") == wanted
    assert len(image.resolve(store, "x:2").lowers) == 2
    before = merged(store, "x:1")
    assert gc.collect(store).blobs == []
    process.run(["umoci", "rm", "--image", f"{store.images}:docker.io/library/x:2"])
    assert len(gc.collect(store).layers) == 1
    assert merged(store, "x:1") == before
    process.run(["umoci", "gc", "--layout", store.images])
    assert merged(store, "x:1") == before


def test_umoci_unpacks_our_commits(scratch: Path) -> None:
    registries.need("umoci")
    store = Store(str(scratch / "root"))
    make_image.import_tar(store, io.BytesIO(ROOTFS), make_image.ImageOptions(name="docker.io/library/x:1"))
    upper = trees.make(scratch / "upper", {".wh.all": trees.File(), "dir/kept": trees.File(b"other", mode=0o4755)})
    make_image.commit(
        store, str(upper), "x:1", make_image.ImageOptions(name="docker.io/library/x:2", compression="gzip")
    )
    process.run(["umoci", "unpack", "--image", f"{store.images}:docker.io/library/x:2", scratch / "bundle"])
    told = {path: t[:6] for path, t in trees.told(scratch / "bundle/rootfs", directory_times=False).items() if path}
    assert told == merged(store, "x:2")


def test_buildah_makes_images_for_us(scratch: Path) -> None:
    registries.need("buildah")
    (scratch / "context").mkdir()
    (scratch / "context/file").write_bytes(b"from buildah")
    (scratch / "context/Containerfile").write_text(
        'FROM scratch\nCOPY --chown=5:6 file /deep/down/file\nENV A=b\nCMD ["/deep/down/file"]\nUSER 5\n'
    )
    store = Store(str(scratch / "root"))
    store.prepare()
    where = ("--root", str(scratch / "storage"), "--runroot", str(scratch / "run"), "--storage-driver", "vfs")
    target = f"oci:{store.images}:docker.io/library/built:1"
    built = subprocess.run(
        ["buildah", *where, "bud", "--isolation", "chroot", "-t", target, str(scratch / "context")],
        capture_output=True,
        text=True,
        timeout=limit(200),
        check=False,
    )
    if built.returncode != 0:
        pytest.skip(f"buildah cannot build here: {built.stderr[-300:]}")
    ready = image.resolve(store, "built:1")
    assert ready.config.settings.cmd == ("/deep/down/file",)
    assert ready.config.settings.user == "5"
    assert "A=b" in ready.config.settings.env
    file = Path(ready.lowers[0]) / "deep/down/file"
    assert file.read_bytes() == b"from buildah"
    assert (file.stat().st_uid, file.stat().st_gid) == (5, 6)


def test_a_foreign_layer_comes_from_its_own_server_without_credentials(scratch: Path) -> None:
    asked: list[tuple[str, dict[str, str]]] = []
    blobs: dict[str, bytes] = {}

    class Elsewhere(Handler):
        def do_GET(self) -> None:
            asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
            if self.path == "/layer":
                self.give(ROOTFS)
            else:
                self.give(b"something else")

    class Registry(Handler):
        def do_GET(self) -> None:
            data = blobs.get(self.path.rpartition("/")[2])
            if data is None:
                self.send_error(404)
            elif "/manifests/" in self.path:
                self.give(data, manifests.OCI_MANIFEST)
            else:
                self.give(data)

    with HttpServer(Elsewhere) as elsewhere, HttpServer(Registry) as registry:
        at = f"http://{elsewhere.host}"
        config = {"architecture": "a", "os": "o", "rootfs": {"type": "layers", "diff_ids": [images.digest(ROOTFS)]}}
        data = json.dumps(config).encode()
        layer = {
            "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar",
            "digest": images.digest(ROOTFS),
            "size": len(ROOTFS),
            "urls": ["ftp://nowhere/x", "file:///etc/passwd", f"{at}/wrong", f"{at}/layer"],
        }
        blobs[images.digest(data)] = data
        described = {"mediaType": manifests.OCI_CONFIG, "digest": images.digest(data), "size": len(data)}
        blobs["1"] = json.dumps({"schemaVersion": 2, "config": described, "layers": [layer]}).encode()
        store = Store(str(scratch / "root"))
        remote = image.Remote(credentials=Credentials("ann", "secret"), pause_s=0.01)
        trio.run(functools.partial(image.pull, store, f"{registry.host}/x:1", remote=remote))
        assert b"a" in merged(store, f"{registry.host}/x:1")
    assert [path for path, _ in asked] == ["/wrong", "/layer"]
    assert not any("authorization" in headers for _, headers in asked)


def test_an_image_that_cannot_be_unpacked_does_not_stop_others(scratch: Path) -> None:
    store = Store(str(scratch / "root"))
    make_image.import_tar(store, io.BytesIO(ROOTFS), make_image.ImageOptions(name="docker.io/library/x:1"))
    bad = trees.tar_of([("../evil", {}, b"")])
    with pytest.raises(LayerError):
        make_image.import_tar(store, io.BytesIO(bad), make_image.ImageOptions(name="docker.io/library/bad:1"))
    assert [named.name for named in store.list_images()] == ["docker.io/library/x:1"]
    assert gc.collect(store).size > 0  # the blob that was refused
    assert b"a" in merged(store, "x:1")
