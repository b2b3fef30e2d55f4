"""The commands, as root and as an ordinary user: what they print, keep and answer."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.layers import registries, trees
from tests.support import process
from tests.support.marks import as_ordinary_user
from tests.support.records import write_record
from tests.support.users import User
from unionfs.cli import entry

ROOTFS = trees.tar_of(
    [
        ("./", {"type": b"5", "mode": 0o755}, b""),
        ("bin/tool", {"mode": 0o4755}, b"#!/bin/true\n"),
        ("home/user", {"type": b"5", "mode": 0o700, "uid": 1000, "gid": 1000}, b""),
        ("home/user/file", {"uid": 1000, "gid": 1000}, b"mine"),
    ]
)


@pytest.fixture(scope="module")
def registry(run_dir: Path) -> Iterator[registries.Registry]:
    """An open registry."""
    with registries.Registry(run_dir / "registry-commands") as started:
        yield started


@pytest.fixture
def rootfs(scratch: Path, user: User) -> Path:
    path = scratch / "rootfs.tar"
    path.write_bytes(ROOTFS)
    path.chmod(0o644)
    scratch.chmod(0o777)
    return path


@pytest.fixture
def root(scratch: Path, user: User) -> Path:
    """An empty store of the user's."""
    directory = scratch / "store"
    directory.mkdir()
    user.own(directory)
    return directory


def layers(user: User, *words: object, status: int = 0) -> str:
    """Run `layers WORDS`; its output."""
    done = user.run(["layers", *map(str, words)], check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + (done.stderr if status else "")


def unionfs(user: User, *words: object, status: int = 0) -> str:
    done = user.unionfs(*map(str, words), check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + (done.stderr if status else "")


def test_the_whole_way_round(
    user: User, root: Path, rootfs: Path, registry: registries.Registry, scratch: Path
) -> None:
    at = ("--root", root)
    name = f"{registry.host}/{user.kind}/image"
    unionfs(user, "import", *at, "-c", "CMD /bin/tool", rootfs, f"{name}:1")
    unionfs(user, "tag", *at, f"{name}:1", f"{name}:2")
    digest = unionfs(user, "push", *at, f"{name}:2").strip()
    listed = json.loads(unionfs(user, "images", *at, "--json"))
    assert [(line["repository"], line["tag"], line["digest"]) for line in listed] == [
        (name, "1", digest),
        (name, "2", digest),
    ]
    assert unionfs(user, "search", registry.host, f"{user.kind}/").split() == [name]
    assert unionfs(user, "search", "--tags", name).split() == ["2"]
    unionfs(user, "save", *at, f"{name}:1", "-o", scratch / "saved.tar")
    assert "untagged" in unionfs(user, "rmi", *at, f"{name}:1")
    assert "deleted" in unionfs(user, "rmi", *at, f"{name}:2")
    assert unionfs(user, "images", *at, "-q") == ""
    assert list((root / "layers").iterdir()) == list((root / "images/blobs/sha256").iterdir()) == []
    assert digest in unionfs(user, "pull", *at, f"{name}:2")
    assert "loaded" in unionfs(user, "load", *at, "-i", scratch / "saved.tar")
    assert json.loads(unionfs(user, "history", *at, "--json", f"{name}:1"))[0]["created_by"] == "unionfs import"
    (layer,) = (root / "layers").iterdir()
    file = (layer / "diff/home/user/file").stat()
    assert (file.st_uid == 1000) is (user.kind == "root")
    assert file.st_uid != (layer / "diff/bin/tool").stat().st_uid
    assert stat.S_IMODE((layer / "diff/bin/tool").stat().st_mode) == 0o4755
    assert layers(user, "verify", *at) == ""
    assert layers(user, "diff", *at, f"{name}:1", f"{name}:2") == ""
    assert layers(user, "check", *at, f"{name}:1") == ""
    told = json.loads(layers(user, "inspect", *at, "--json", f"{name}:1"))
    assert told[0]["layers"][0]["files"] == 2
    assert told[0]["config"]["cmd"] == ["/bin/sh", "-c", "/bin/tool"]
    layers(user, "squash", *at, f"{name}:1", "-t", "flat:1")
    unionfs(user, "rmi", *at, "--all")
    assert list((root / "layers").iterdir()) == []


@as_ordinary_user
def test_directories_and_tars(user: User, rootfs: Path, scratch: Path) -> None:
    tree, again = scratch / "tree", scratch / "again"
    layers(user, "unpack", rootfs, tree)
    first = layers(user, "pack", tree, "-o", scratch / "first.tar", "--compression", "zstd").split()
    layers(user, "unpack", scratch / "first.tar", again)
    assert layers(user, "pack", again, "-o", scratch / "second.tar", "--compression", "zstd").split() == first
    assert layers(user, "diff", tree, again) == ""
    (again / "bin/tool").unlink()
    (again / "new").touch()
    user.own(again / "new")
    told = layers(user, "diff", tree, again, status=3).splitlines()
    assert told[:3] == ["C /", "C /bin", "D /bin/tool"]
    assert told[3].startswith("A /new  (-rw")
    gone = json.loads(layers(user, "diff", "--json", tree, again, status=3))[2]
    assert (gone["kind"], gone["path"], gone["what"], gone["old"]["mode"]) == ("D", "/bin/tool", [], "4755")
    (again / "bin/.wh.tool").touch()
    user.own(again / "bin/.wh.tool")
    layers(user, "convert", "--to", "overlay", again, scratch / "overlay")
    assert stat.S_ISCHR((scratch / "overlay/bin/tool").lstat().st_mode)
    assert "overlay dialect" in layers(user, "check", "--dialect", "aufs", scratch / "overlay", status=3)
    layers(user, "convert", "--to", "oci", scratch / "overlay", scratch / "overlay.tar")
    assert json.loads(layers(user, "inspect", "--json", scratch / "overlay.tar"))[0]["layers"][0]["whiteouts"] == {
        "oci": 1
    }
    layers(user, "squash", again, tree, "-o", scratch / "flat.tar")
    names = process.run(["tar", "-tf", scratch / "flat.tar"]).stdout.split()
    assert "bin/" in names
    assert "bin/tool" not in names
    assert "new" in names


@as_ordinary_user
def test_failures_have_their_codes(user: User, root: Path, rootfs: Path, scratch: Path) -> None:
    at = ("--root", root)
    (scratch / "bad.tar").write_bytes(trees.tar_of([("../evil", {}, b"")]))
    (scratch / "bad.tar").chmod(0o644)
    assert "'..'" in unionfs(user, "import", *at, scratch / "bad.tar", "x:1", status=4)
    assert "Traceback" not in layers(user, "unpack", scratch / "bad.tar", scratch / "out", status=4)
    assert not (scratch / "out").exists()
    assert not (scratch / "evil").exists()
    assert "not in the store" in unionfs(user, "history", *at, "missing:1", status=5)
    assert "lower case" in unionfs(user, "pull", *at, "BAD", status=2)
    assert "unionfs pull missing:1" in layers(user, "inspect", *at, "missing:1", status=5)
    assert "no command" in layers(user, "nonsense", status=2)
    assert "--help" in layers(user, "pack", status=2)
    assert "no such file" in layers(user, "unpack", "./missing", scratch / "out", status=5).lower()
    assert list((root / "aside").iterdir()) == []


def test_a_registry_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("layers.session.trio.sleep", sleep)
    assert entry.run(["search", f"127.0.0.1:{registries.free_port()}"]) == 6
    assert "reaching a registry" in capsys.readouterr().err
    assert pauses


@as_ordinary_user
def test_login_and_logout(user: User, root: Path, rootfs: Path, scratch: Path) -> None:
    with registries.Registry(scratch / "registry", password=True) as locked:
        name = f"{locked.host}/x:1"
        unionfs(user, "import", "--root", root, rootfs, name)
        assert "unionfs login" in unionfs(user, "push", "--root", root, name, status=7)
        word = ("login", "-u", registries.NAME, "--password-stdin", locked.host)
        assert user.unionfs(*word, stdin="wrong\n", check=False).returncode == 7
        assert "succeeded" in user.unionfs(*word, stdin=registries.PASSWORD + "\n").stdout
        kept = user.home / ".docker/config.json"
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600
        assert registries.PASSWORD not in kept.read_text()
        assert unionfs(user, "login", "--get-login", locked.host).strip() == registries.NAME
        unionfs(user, "push", "--root", root, name)
        unionfs(user, "logout", locked.host)
        unionfs(user, "pull", "--root", root, name, status=7)
        unionfs(user, "pull", "--root", root, "--creds", f"{registries.NAME}:{registries.PASSWORD}", name)


def test_verify_lists_changes(user: User, root: Path, rootfs: Path) -> None:
    unionfs(user, "import", "--root", root, rootfs, "x:1")
    (layer,) = (root / "layers").iterdir()
    (layer / "diff/bin/tool").write_bytes(b"#!/bin/evil\n")
    assert "/bin/tool: " in layers(user, "verify", "--root", root, "x:1", status=3)
    found = json.loads(layers(user, "verify", "--root", root, "--json", status=3))
    assert found[0]["path"] == "/bin/tool"
    assert "content" in found[0]["what"]


def test_gc_keeps_layers_of_containers(user: User, root: Path, rootfs: Path) -> None:
    unionfs(user, "import", "--root", root, rootfs, "x:1")
    (layer,) = (root / "layers").iterdir()
    record = write_record(root, str(layer / "diff"))
    user.own(root / "containers")
    assert "a container uses it" in unionfs(user, "rmi", "--root", root, "x:1", status=1)
    unionfs(user, "rmi", "--root", root, "--force", "x:1")
    assert layer.exists()
    record.unlink()
    assert "1 unpacked layers" in layers(user, "gc", "--root", root)
    assert not layer.exists()
