"""Archives: what we save skopeo reads, what skopeo and old Dockers save we load, and what is malformed is refused."""

from __future__ import annotations

import gzip
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from layers import archive, gc, image, make_image, tree
from layers import manifest as manifests
from layers.digest import Digest
from layers.errors import LayerError, Refused
from layers.store import Store
from tests.layers import images, registries, trees
from tests.support import process
from tests.support.users import User

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="layers with other owners need root")

BASE = trees.tar_of([("a", {"uid": 5}, b"one"), ("b", {}, b"gone")])
TOP = trees.tar_of([("c/d", {}, os.urandom(100_000)), (".wh.b", {}, b"")])


@pytest.fixture
def store(scratch: Path) -> Store:
    """A store with the images one:1 and two:1, which share a layer."""
    made = Store(str(scratch / "root"))
    made.prepare()
    registries.need("skopeo")
    for name, layers in (("one", [BASE, TOP]), ("two", [BASE])):
        images.layout(scratch / name, layers, settings={"Cmd": ["/a"]})
        process.run(["skopeo", "copy", f"oci:{scratch / name}:t", f"oci:{made.images}:docker.io/library/{name}:1"])
    return made


def saved(store: Store, scratch: Path, *names: str) -> Path:
    with (scratch / "saved.tar").open("wb") as sink:
        archive.save(store, names, sink)
    return scratch / "saved.tar"


def load(store: Store, path: Path, **options: Any) -> list[archive.Loaded]:
    with path.open("rb") as source:
        return archive.load(store, source, **options)


def shown(store: Store, name: str) -> list[list[str]]:
    return [list(trees.names(Path(lower))) for lower in image.resolve(store, name).lowers]


def test_what_is_saved_is_loaded(store: Store, scratch: Path) -> None:
    file = saved(store, scratch, "one:1", "two:1")
    other = Store(str(scratch / "other"))
    loaded = load(other, file)
    assert [one.name for one in loaded] == ["docker.io/library/one:1", "docker.io/library/two:1"]
    assert [one.digest for one in loaded] == [store.find(name).descriptor.digest for name in ("one:1", "two:1")]
    assert shown(other, "one:1") == [[".wh.b", "c", "c/d"], ["a", "b"]]
    assert gc.collect(other) == gc.Freed()


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
def test_skopeo_reads_our_archives(store: Store, scratch: Path, kind: str, ordinary_user: User) -> None:
    file = saved(store, scratch, "one:1")
    ordinary_user.run(["skopeo", "inspect", f"{kind}:{file}"])
    process.run(["skopeo", "copy", f"{kind}:{file}", f"oci:{scratch / 'back'}:t"])
    process.run(["umoci", "unpack", "--image", f"{scratch / 'back'}:t", scratch / "bundle"])
    assert trees.names(scratch / "bundle/rootfs") == ["a", "c", "c/d"]


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
@pytest.mark.parametrize("compress", [False, True])
def test_we_load_archives_of_skopeo(store: Store, scratch: Path, kind: str, compress: bool) -> None:
    file = scratch / "theirs.tar"
    process.run(["skopeo", "copy", f"oci:{scratch / 'one'}:t", f"{kind}:{file}:some/name:3"])
    if compress:
        file.write_bytes(gzip.compress(file.read_bytes()))
    other = Store(str(scratch / "other"))
    load(other, file, name="r.example/x:1")
    assert shown(other, "r.example/x:1") == [[".wh.b", "c", "c/d"], ["a", "b"]]
    assert image.resolve(other, "r.example/x:1").config.settings.cmd == ("/a",)
    if kind == "docker-archive":
        assert load(other, file)[0].name == "docker.io/some/name:3"


def test_many_layers_are_looked_at_once_each(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They pass through directories that none describes, so each asks all beneath it. Few descriptors are allowed."""
    tars = [trees.tar_of([(f"d/{number}", {}, b""), (f"e/{number}", {}, b"")]) for number in range(120)]
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers"}}
    config["rootfs"] |= {"diff_ids": list(map(images.digest, tars))}  # type: ignore[operator]
    names = [f"{number}/layer.tar" for number in range(len(tars))]
    listed = [{"Config": "c.json", "RepoTags": ["many:1"], "Layers": names}]
    entries: list[Any] = [*zip(names, [{}] * len(tars), tars, strict=True), ("c.json", {}, json.dumps(config).encode())]
    entries.append(("manifest.json", {}, json.dumps(listed).encode()))
    (scratch / "many.tar").write_bytes(trees.tar_of(entries))
    store, scans = Store(str(scratch / "other")), 0
    scan = tree._scan

    def counted(fd: int, *, is_root: bool) -> tree.Scan:
        nonlocal scans
        scans += 1
        return scan(fd, is_root=is_root)

    monkeypatch.setattr(tree, "_scan", counted)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 100, limits[1]))
    try:
        load(store, scratch / "many.tar")
        lowers = image.resolve(store, "many:1").lowers
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(set(lowers)) == len(tars)
    assert scans <= 3 * len(tars)


def test_an_archive_of_an_old_docker_is_loaded(scratch: Path) -> None:
    config = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [images.digest(BASE)] * 2},
    }
    listed = [{"Config": "c.json", "RepoTags": ["old:1", "old:2"], "Layers": ["x/layer.tar", "y/layer.tar"]}]
    tar = trees.tar_of(
        [
            ("x/layer.tar", {}, BASE),
            ("y/layer.tar", {"type": tarfile.SYMTYPE, "linkname": "../x/layer.tar"}, b""),
            ("c.json", {}, json.dumps(config).encode()),
            ("manifest.json", {}, json.dumps(listed).encode()),
            ("repositories", {}, b"{}"),
        ]
    )
    store = Store(str(scratch / "root"))
    loaded = archive.load(store, io.BytesIO(tar))
    assert [one.name for one in loaded] == ["docker.io/library/old:1", "docker.io/library/old:2"]
    assert shown(store, "old:2") == [["a", "b"], ["a", "b"]]


def _docker(config: Any, listed: Any, layer: bytes = BASE) -> bytes:
    return trees.tar_of(
        [
            ("l.tar", {}, layer),
            ("c.json", {}, json.dumps(config).encode()),
            ("manifest.json", {}, json.dumps(listed).encode()),
        ]
    )


CONFIG: dict[str, Any] = {
    "architecture": "a",
    "os": "o",
    "rootfs": {"type": "layers", "diff_ids": [images.digest(BASE)]},
}
LISTED: dict[str, Any] = {"Config": "c.json", "RepoTags": None, "Layers": ["l.tar"]}


NOWHERE = {"schemaVersion": 2, "manifests": [{"mediaType": "x", "digest": "sha256:" + "a" * 64, "size": 1}]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no tar at all" * 100,
        trees.tar_of([("x", {}, b"")]),
        _docker(CONFIG, {}),
        _docker(CONFIG, [LISTED | {"Layers": 5}]),
        _docker(CONFIG, [LISTED | {"Layers": ["missing"]}]),
        _docker(CONFIG, [LISTED | {"Layers": ["../../etc/passwd"]}]),
        _docker(CONFIG, [LISTED | {"Config": "/etc/passwd"}]),
        _docker(CONFIG, [LISTED | {"Layers": []}]),
        _docker(CONFIG, [LISTED], TOP),
        trees.tar_of([("oci-layout", {}, b"{}"), ("index.json", {}, b"[]")]),
        trees.tar_of([("oci-layout", {}, b"{}"), ("index.json", {}, json.dumps(NOWHERE).encode())]),
    ],
)
def test_a_file_that_is_no_archive_is_refused_and_leaves_nothing(scratch: Path, data: bytes) -> None:
    store = Store(str(scratch / "root"))
    with pytest.raises(Refused):
        archive.load(store, io.BytesIO(data))
    assert store.list_images() == []
    assert os.listdir(store.aside) == os.listdir(store.layers) == []


def test_one_name_is_for_one_image(store: Store, scratch: Path) -> None:
    file = saved(store, scratch, "one:1", "two:1")
    with pytest.raises(LayerError, match="2 images"):
        load(Store(str(scratch / "other")), file, name="x:1")


def test_a_root_filesystem_is_imported(scratch: Path) -> None:
    store = Store(str(scratch / "root"))
    made = make_image.import_tar(
        store,
        io.BytesIO(gzip.compress(BASE)),
        make_image.ImageOptions(name="docker.io/library/i:1", compression="zstd"),
    )
    assert made.layer.diff_id == images.digest(BASE)
    assert shown(store, "i:1") == [["a", "b"]]
    process.run(["skopeo", "copy", f"oci:{store.images}:docker.io/library/i:1", f"oci:{scratch / 'copy'}:t"])
    with pytest.raises(Refused):
        make_image.import_tar(
            store, io.BytesIO(b"nonsense" * 500), make_image.ImageOptions(name="docker.io/library/j:1")
        )
    assert [image_.name for image_ in store.list_images()] == ["docker.io/library/i:1"]
    assert os.listdir(store.aside) == []


class Layout:
    """An OCI archive, made blob by blob."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}

    def put(self, value: Any, media_type: str, *, absent: bool = False, **fields: Any) -> dict[str, Any]:
        """Add a blob, which is JSON unless it is bytes; returns its descriptor."""
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        digest = images.digest(data)
        if not absent:
            self.blobs[digest] = data
        return {"mediaType": media_type, "digest": digest, "size": len(data)} | fields

    def image(self, layer: bytes = BASE, *, absent: bool = False, **fields: Any) -> dict[str, Any]:
        config = {"architecture": "amd64", "os": "linux", "rootfs": {"diff_ids": [images.digest(layer)]}}
        return self.manifest(self.put(config, manifests.OCI_CONFIG), layer, manifests.OCI_LAYER, absent, **fields)

    def manifest(
        self, config: dict[str, Any], layer: bytes, layer_type: str, absent: bool = False, **fields: Any
    ) -> dict[str, Any]:
        layers = [self.put(layer, layer_type, absent=absent)]
        value = {"schemaVersion": 2, "mediaType": manifests.OCI_MANIFEST, "config": config, "layers": layers}
        return self.put(value | {"annotations": {"a": None}}, manifests.OCI_MANIFEST, **fields)

    def index(self, *entries: dict[str, Any], **fields: Any) -> dict[str, Any]:
        value = {"schemaVersion": 2, "mediaType": manifests.OCI_INDEX, "manifests": entries}
        return self.put(value, manifests.OCI_INDEX, **fields)

    def tar(self, *entries: dict[str, Any]) -> bytes:
        index = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
        blobs: list[Any] = [(f"blobs/{digest.replace(':', '/')}", {}, data) for digest, data in self.blobs.items()]
        return trees.tar_of([("oci-layout", {}, b"{}"), ("index.json", {}, index), *blobs])


def own(architecture: str = "") -> dict[str, str]:
    return {"os": "linux", "architecture": architecture or manifests.own_platform().architecture}


def named(name: str) -> dict[str, str]:
    return {manifests.REF_NAME: name}


def loaded_from(scratch: Path, tar: bytes) -> tuple[Store, list[archive.Loaded], list[str]]:
    store = Store(str(scratch / "root"))
    warnings: list[str] = []
    return store, archive.load(store, io.BytesIO(tar), warn=warnings.append), warnings


def test_what_is_no_image_is_left_with_a_word(scratch: Path) -> None:
    made = Layout()
    image_ = made.image(platform=own())
    other = made.image(TOP, absent=True, platform=own("s390x"))
    gone = made.put({"x": 1}, manifests.OCI_MANIFEST, absent=True, platform=own("arm"))
    config = made.put({"architecture": "unknown", "os": "unknown", "rootfs": {}}, manifests.OCI_CONFIG)
    attestation = made.manifest(
        config, b"{}", "application/vnd.in-toto+json", platform={"os": "unknown", "architecture": "unknown"}
    )
    sbom = made.manifest(made.put({}, manifests.OCI_EMPTY), b"{1}", "application/spdx+json")
    plain = made.put({"spdx": 1}, "application/spdx+json")
    index = made.index(image_, other, gone, attestation, sbom, plain, annotations=named("r.example/x:1"))
    store, loaded, warnings = loaded_from(scratch, made.tar(index, sbom, plain))
    assert loaded == [archive.Loaded("r.example/x:1", Digest(index["digest"]))]
    assert shown(store, "r.example/x:1") == [["a", "b"]]
    left = [other, gone, attestation, sbom, plain, sbom, plain]
    assert [text.split()[2].rstrip(":") for text in warnings] == [one["digest"] for one in left]
    assert "does not have it" in warnings[1]
    assert "linux/s390x" in warnings[0]
    assert gc.collect(store) == gc.Freed()


def test_an_archive_of_nothing_but_artifacts_is_refused(scratch: Path) -> None:
    made = Layout()
    sbom = made.manifest(made.put({}, manifests.OCI_EMPTY), b"{}", "application/spdx+json")
    with pytest.raises(Refused, match="no image in it"):
        loaded_from(scratch, made.tar(sbom))
    absent = made.image(absent=True, layer=TOP)
    with pytest.raises(Refused, match="has no such file"):
        loaded_from(scratch, made.tar(absent))


def test_an_index_within_an_index_stands_for_its_images(scratch: Path) -> None:
    made = Layout()
    inner = made.index(made.image(platform=own()))
    foreign = made.index(made.image(TOP, platform=own("s390x")))
    outer = made.index(made.index(foreign, inner), annotations=named("r.example/x:1"))
    store, loaded, warnings = loaded_from(scratch, made.tar(outer))
    assert loaded == [archive.Loaded("r.example/x:1", Digest(inner["digest"]))]
    assert shown(store, "r.example/x:1") == [["a", "b"]]
    assert warnings == [f"left out: {foreign['digest']}: another image of the same index is loaded"]


def test_a_bare_tag_is_a_name(scratch: Path) -> None:
    made = Layout()
    store, loaded, _ = loaded_from(scratch, made.tar(made.image(annotations=named("some"))))
    assert [one.name for one in loaded] == ["docker.io/library/some:latest"]
    assert shown(store, "some") == [["a", "b"]]


def test_nulls_are_read_as_go_reads_them(scratch: Path) -> None:
    made = Layout()
    config: dict[str, Any] = {"architecture": "amd64", "os": "linux", "rootfs": {"diff_ids": None}, "history": [None]}
    config["config"] = {"Labels": {"a": None}}
    value = {"schemaVersion": 2, "config": made.put(config, manifests.OCI_CONFIG), "layers": None, "annotations": None}
    entry = made.put(value, manifests.OCI_MANIFEST, annotations=named("r.example/x:1"))
    store, loaded, _ = loaded_from(scratch, made.tar(entry))
    assert loaded[0].name == "r.example/x:1"
    assert shown(store, "r.example/x:1") == []
    assert image.resolve(store, "r.example/x:1").config.settings.labels == {"a": ""}
    docker = _docker(CONFIG | {"rootfs": {"type": "layers", "diff_ids": []}}, [LISTED | {"Layers": None}])
    assert len(archive.load(store, io.BytesIO(docker))) == 1


def test_a_symlink_to_a_symlink_in_an_archive(scratch: Path) -> None:
    tar = trees.tar_of(
        [
            ("y/layer.tar", {"type": tarfile.SYMTYPE, "linkname": "../x/layer.tar"}, b""),
            ("x/layer.tar", {"type": tarfile.SYMTYPE, "linkname": "../l.tar"}, b""),
            ("z/layer.tar", {"type": tarfile.SYMTYPE, "linkname": "layer.tar"}, b""),
            ("l.tar", {}, BASE),
            ("c.json", {}, json.dumps(CONFIG).encode()),
            ("manifest.json", {}, json.dumps([LISTED | {"Layers": ["y/layer.tar"], "RepoTags": ["x:1"]}]).encode()),
        ]
    )
    store, _, _ = loaded_from(scratch, tar)
    assert shown(store, "x:1") == [["a", "b"]]


def layers(*arguments: object) -> subprocess.CompletedProcess[str]:
    return process.run([sys.executable, "-m", "layers", *map(str, arguments)], check=False)


def test_an_archive_is_taken_for_an_image_by_every_command(store: Store, scratch: Path) -> None:
    one = saved(store, scratch, "one:1")
    docker = scratch / "docker.tar"
    process.run(["skopeo", "copy", f"oci:{scratch / 'one'}:t", f"docker-archive:{docker}:some/name:3"])
    for file in (one, docker):
        told = json.loads(layers("inspect", file, "--json").stdout)[0]
        assert [layer["files"] for layer in told["layers"]] == [2, 1]
        assert told["config"]["cmd"] == ["/a"]
        assert layers("diff", file, "image:one:1", "--root", store.root).returncode == 0
    both = layers("inspect", saved(store, scratch, "one:1", "two:1"))
    assert (both.returncode, "it holds 2 images" in both.stderr) == (1, True)


def test_a_layer_is_no_archive(scratch: Path) -> None:
    for number, tar in enumerate([BASE, trees.tar_of([("manifest.json", {}, b"{}"), ("etc/x", {}, b"")]), b""]):
        (scratch / str(number)).write_bytes(tar)
        assert not archive.is_archive(str(scratch / str(number)))
