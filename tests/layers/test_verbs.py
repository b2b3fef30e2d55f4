"""The verbs on images for daily use: filters, prune, several tags and platforms at once, import from anywhere."""

from __future__ import annotations

import errno
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from layers import manifest as manifests
from layers.cli.command import main as layers_main
from layers.digest import Digest
from layers.manifest import Descriptor, Index, Platform
from layers.store import Store
from tests.layers import images, registries, trees
from tests.support import process
from tests.support.records import write_record
from unionfs.__main__ import main
from unionfs.containers.errors import ContainerError
from unionfs.containers.images import failures

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="layers with other owners need root")

TAR = trees.tar_of([("a", {"uid": 5}, b"one")])


@pytest.fixture(scope="module")
def registry(run_dir: Path) -> Iterator[registries.Registry]:
    """An open registry."""
    with registries.Registry(run_dir / "registry-verbs") as started:
        yield started


class Command:
    """`unionfs` on a store of its own."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self.store = Store(str(root))
        self._capsys = capsys

    def __call__(self, *words: object, status: int = 0) -> str:
        self._capsys.readouterr()
        verb = 2 if words[0] == "image" else 1
        argv = [*map(str, words[:verb]), "--root", str(self.root), *map(str, words[verb:])]
        assert main(argv) == status, self._capsys.readouterr()
        told = self._capsys.readouterr()
        return told.out + (told.err if status else "")


@pytest.fixture
def unionfs(scratch: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(scratch / "root", capsys)


@pytest.fixture
def tar(scratch: Path) -> Path:
    (scratch / "root.tar").write_bytes(TAR)
    return scratch / "root.tar"


def test_images_are_filtered_and_sorted(unionfs: Command, tar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(("red:1", "blue:1", "blue:2")):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", str(1_000_000 * (number + 1)))
        unionfs("import", "-c", f"LABEL colour={name}", "-c", "LABEL made", tar, name)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "9000000")
    unionfs("import", tar)

    def names(*words: str) -> list[str]:
        lines = unionfs("images", "--noheading", *words).splitlines()
        return [":".join(line.split()[:2]) for line in lines]

    assert names() == ["<none>:<none>", "blue:1", "blue:2", "red:1"]
    assert names("--sort", "created") == ["<none>:<none>", "blue:2", "blue:1", "red:1"]
    assert names("-f", "dangling=true") == ["<none>:<none>"]
    assert names("--filter", "dangling=false", "--filter", "reference=blue:*") == ["blue:1", "blue:2"]
    assert names("-f", "reference=bl*") == ["blue:1", "blue:2"]
    assert names("-f", "label=colour=red:1") == ["red:1"]
    assert names("-f", "label=made") == ["blue:1", "blue:2", "red:1"]
    assert names("-f", "before=blue:2") == ["blue:1", "red:1"]
    assert names("-f", "since=blue:1") == ["<none>:<none>", "blue:2"]
    assert names("blue") == ["blue:1", "blue:2"]
    assert json.loads(unionfs("images", "--json", "red"))[0]["labels"]["colour"] == "red:1"
    assert "not a known filter" in unionfs("images", "-f", "weather=fine", status=2)
    assert "not in the store" in unionfs("images", "-f", "since=green", status=5)


def digests_of(unionfs: Command) -> set[str]:
    return {line["digest"] for line in json.loads(unionfs("images", "--json"))}


def digest_of(unionfs: Command, image_id: str) -> str:
    (told,) = json.loads(unionfs("inspect", image_id.strip()))
    return str(told["Digest"])


def test_images_are_shown_and_found_by_id(unionfs: Command, tar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", f"{time.time() - 80:.0f}")
    unionfs("import", "--compression", "gzip", tar, "gzip:1")
    whole = unionfs("import", "--compression", "none", tar, "none:1").strip()  # another manifest, one configuration
    (told,) = json.loads(unionfs("inspect", "none:1"))
    assert told["Id"] == whole
    digest = told["Digest"]
    short = whole.removeprefix("sha256:")[:12]
    head, first, _ = unionfs("images").splitlines()
    assert re.split("  +", head) == ["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"]
    assert re.split("  +", first)[:4] == ["gzip", "1", short, "About a minute ago"]
    assert re.split("  +", unionfs("images", "--digests", "--noheading", "none"))[2:4] == [digest, short]
    assert whole in unionfs("images", "--no-trunc", "none")
    assert unionfs("images", "-q") == f"{short}\n"
    assert unionfs("images", "-q", "--no-trunc") == f"{whole}\n"
    assert unionfs("images", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}", "none") == f"none:1 {short}\n"
    assert "no field" in unionfs("images", "--format", "{{.Weather}}", status=2)
    unionfs("tag", short, "third:1")
    assert json.loads(unionfs("inspect", whole))[0]["Id"] == whole
    assert "none:1" in unionfs("rmi", digest)
    assert len(digests_of(unionfs)) == 1
    unionfs("rmi", short)
    assert unionfs("images", "-q") == ""


def test_prune_keeps_images_with_a_name_or_a_container(unionfs: Command, tar: Path) -> None:
    named = digest_of(unionfs, unionfs("import", tar, "named:1"))
    unionfs("import", "-c", "CMD a", tar)
    used = digest_of(unionfs, unionfs("import", "-c", "CMD b", tar))
    container = write_record(unionfs.root, "/lower", used)
    told = json.loads(unionfs("image", "prune", "--json"))
    assert len(told["images"]) == 1
    assert digests_of(unionfs) == {named, used}
    assert "untagged docker.io/library/named:1" in unionfs("image", "prune", "--all", "--force")
    assert digests_of(unionfs) == {used}
    container.unlink()
    unionfs("image", "prune", "--force")
    assert os.listdir(unionfs.store.layers) == os.listdir(Path(unionfs.store.images, "blobs/sha256")) == []


def test_the_longer_names_are_the_same_verbs(unionfs: Command, tar: Path) -> None:
    unionfs("import", tar, "a:1")
    unionfs("image", "tag", "a:1", "b:1", "c:1")
    assert unionfs("image", "ls") == unionfs("images")
    assert json.loads(unionfs("image", "inspect", "a:1"))[0]["RepoTags"] == [
        f"docker.io/library/{name}:1" for name in "abc"
    ]
    assert len(unionfs("history", "-q", "a:1").split()) == 1
    unionfs("image", "rm", "a:1", "b:1", "c:1")
    assert "did you" in unionfs("imagse", status=2)
    assert "no command" in unionfs("image", "nonsense", status=2)


def test_all_tags_go_and_come_at_once(unionfs: Command, tar: Path, registry: registries.Registry) -> None:
    name = f"{registry.host}/many/tags"
    unionfs("import", tar, f"{name}:1")
    unionfs("import", "-c", "CMD x", tar, f"{name}:2")
    unionfs("import", tar, "other:1")
    assert len(unionfs("push", "--all-tags", name).splitlines()) == 2
    unionfs("push", "--all-tags", "-q", name, f"{registry.host}/elsewhere")
    unionfs("rmi", "--all")
    assert len(unionfs("pull", "-q", "--all-tags", f"{registry.host}/elsewhere").split()) == 2
    assert sorted(line["tag"] for line in json.loads(unionfs("images", "--json"))) == ["1", "2"]
    assert "one image" in unionfs("pull", "-a", f"{name}:1", status=2)
    assert "one image" in unionfs("push", "-a", f"{name}:1", status=2)
    assert "no tag" in unionfs("push", "-a", "nothing/here", status=5)


def test_an_index_is_pulled_and_pushed_whole(unionfs: Command, registry: registries.Registry, scratch: Path) -> None:
    registries.need("skopeo")
    entries: list[Descriptor] = []
    for architecture in ("amd64", "arm64"):
        images.layout(scratch / architecture, [trees.tar_of([(f"is-{architecture}", {}, b"")])])
        process.run(
            ["cp", "-rT", scratch / architecture / "blobs", scratch / "both/blobs"]
        ) if entries else process.run(["cp", "-r", scratch / architecture, scratch / "both"])
        (one,) = json.loads((scratch / architecture / "index.json").read_text())["manifests"]
        entries.append(
            Descriptor(one["mediaType"], Digest(one["digest"]), one["size"], {}, Platform("linux", architecture))
        )
    data = manifests.to_json(Index(manifests.OCI_INDEX, tuple(entries)))
    digest, size = images.put(scratch / "both", data)
    told = {"mediaType": manifests.OCI_INDEX, "digest": digest, "size": size}
    told["annotations"] = {"org.opencontainers.image.ref.name": "t"}
    (scratch / "both/index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [told]}))
    name = f"{registry.host}/for/all:1"
    process.run(["skopeo", "copy", "--all", "--dest-tls-verify=false", f"oci:{scratch / 'both'}:t", f"docker://{name}"])

    wanted = entries[manifests.own_platform().architecture == "arm64"].digest
    assert unionfs("pull", name).splitlines() == [
        f"Digest: {wanted}",
        f"Status: Downloaded newer image for {name}",
        name,
    ]
    assert unionfs("pull", name).splitlines()[1] == f"Status: Image is up to date for {name}"
    assert unionfs("pull", "-q", name) == f"{name}\n"
    unionfs("rmi", name)
    assert unionfs("pull", "--all-platforms", name).splitlines()[0] == f"Digest: {digest}"
    assert len(os.listdir(unionfs.store.layers)) == 1  # one platform is unpacked
    again = f"{registry.host}/for/everybody:2"
    assert unionfs("push", name, again).strip() == digest
    back = scratch / "back"
    process.run(["skopeo", "copy", "--all", "--src-tls-verify=false", f"docker://{again}", f"oci:{back}:t"])
    assert set(os.listdir(back / "blobs/sha256")) == set(os.listdir(Path(unionfs.store.images, "blobs/sha256")))
    os.unlink(unionfs.store.blob_path(entries[1].digest))
    assert "--all-platforms" in unionfs("push", name, again, status=5)
    unionfs("rmi", name)
    assert os.listdir(unionfs.store.layers) == os.listdir(Path(unionfs.store.images, "blobs/sha256")) == []


@contextmanager
def served(directory: Path) -> Iterator[str]:
    """The files of a directory over HTTP."""

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=os.fspath(directory))  # type: ignore[arg-type]

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_import_from_a_server(unionfs: Command, tar: Path) -> None:
    with served(tar.parent) as url:
        unionfs("import", "--platform", "linux/arm64", "-m", "from afar", "-c", "ENV A=b", f"{url}/root.tar", "far:1")
        assert "404" in unionfs("import", f"{url}/missing.tar", "x:1", status=1)
    assert "failed" in unionfs("import", f"{url}/root.tar", "x:1", status=1)
    (told,) = json.loads(unionfs("image", "inspect", "far:1"))
    assert (told["Architecture"], told["Config"]["Env"]) == ("arm64", ["A=b"])
    assert "from afar" in unionfs("history", "--no-trunc", "far:1")
    assert os.listdir(unionfs.store.aside) == []


def test_a_dry_run_of_gc_lists_the_same(unionfs: Command, tar: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unionfs("import", tar, "a:1")
    unionfs("rmi", "--no-prune", "a:1")
    there = sorted(os.listdir(Path(unionfs.store.images, "blobs/sha256"))), os.listdir(unionfs.store.layers)
    told = []
    for words in (["--dry-run"], []):
        assert layers_main(["gc", "--root", str(unionfs.root), "--json", *words]) == 0
        told.append(json.loads(capsys.readouterr().out))
        if words:
            assert there == (
                sorted(os.listdir(Path(unionfs.store.images, "blobs/sha256"))),
                os.listdir(unionfs.store.layers),
            )
    assert told[0] == told[1]
    assert len(told[0]["blobs"]) == 3
    assert os.listdir(unionfs.store.layers) == []


def test_a_manifest_and_a_configuration_that_disagree(unionfs: Command, scratch: Path) -> None:
    images.layout(Path(unionfs.store.images), [TAR], name="x:1")
    manifest = json.loads(unionfs.store.read_blob(unionfs.store.find("x:1").descriptor.digest))
    manifest["layers"] *= 2
    digest, size = images.put(Path(unionfs.store.images), json.dumps(manifest).encode())
    with unionfs.store.adding():
        unionfs.store.tag(Descriptor(manifests.OCI_MANIFEST, Digest(digest), size), "docker.io/library/lie:1")
    assert "2 layers, the configuration 1" in unionfs("history", "lie:1", status=4)
    assert "lie" in unionfs("images")  # what is damaged can still be seen, and removed
    unionfs("rmi", "lie:1")


def test_a_full_disk_gives_a_hint() -> None:
    with pytest.raises(ContainerError) as caught, failures():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "layers gc" in caught.value.hint
    with pytest.raises(ContainerError) as caught, failures():
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/x")
    assert (str(caught.value), caught.value.hint) == ("working on images failed: /x: Input/output error", "")
