"""Commit, squash, differences, dialects, checks, verification: on real directories, in every dialect."""

from __future__ import annotations

import io
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from layers import compare, image, lint, make_image, pack, unpacked
from layers.attributes import OVERLAY, Options
from layers.errors import LayerError, NotFound
from layers.store import Store
from layers.tree import LayerTrees
from tests.layers import images, trees
from tests.layers.trees import Dir, File, Link, Node, Symlink, Thing
from tests.support import process

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="files of other owners, devices and trusted attributes need root"
)

BASE: dict[str, Thing] = {
    "kept": File(b"kept"),
    "changed": File(b"before"),
    "gone": File(b"gone"),
    "dir": Dir(mode=0o750, uid=3),
    "dir/inside": File(b"inside", uid=3),
    "dir/other": File(b"other"),
    "tree/a/b": File(b"deep"),
    "tree/c": Symlink("a/b"),
}


@pytest.fixture
def store(scratch: Path) -> Store:
    """A store with the image base:1."""
    made = Store(str(scratch / "root"))
    tree = trees.make(scratch / "base", BASE)
    sink = io.BytesIO()
    with LayerTrees() as branches:
        pack.pack(pack.layer_items(branches.open(str(tree))), sink, "gzip")
    make_image.import_tar(
        made,
        io.BytesIO(sink.getvalue()),
        make_image.ImageOptions(name="docker.io/library/base:1", changes=["CMD /kept"]),
    )
    return made


def shown(store: Store, name: str) -> dict[bytes, object]:
    """What the layers of an image show together, as umoci unpacks it."""
    out = Path(store.root) / "shown"
    process.run(["rm", "-rf", out])
    process.run(["umoci", "unpack", "--image", f"{store.images}:{name}", out])
    told = trees.told(out / "rootfs", directory_times=False)
    return {path: what[:6] for path, what in told.items()}


def commit(store: Store, upper: Path, **wishes: object) -> make_image.Committed:
    wish = make_image.ImageOptions(name="docker.io/library/new:1", **wishes)  # type: ignore[arg-type]
    return make_image.commit(store, str(upper), "base:1", wish)


def _aufs(upper: Path) -> None:
    (upper / ".wh.gone").touch()
    (upper / "tree").mkdir()
    (upper / "tree/.wh..wh..opq").touch()


def _overlay(upper: Path) -> None:
    os.mknod(upper / "gone", stat.S_IFCHR, 0)
    (upper / "tree").mkdir()
    os.setxattr(upper / "tree", "trusted.overlay.opaque", b"y")


def _xattr(upper: Path) -> None:
    os.setxattr(upper, "user.overlay.opaque", b"x")
    (upper / "gone").touch()
    os.setxattr(upper / "gone", "user.overlay.whiteout", b"")
    (upper / "tree").mkdir()
    os.setxattr(upper / "tree", "user.fuseoverlayfs.opaque", b"y")


@pytest.mark.parametrize("mark", [_aufs, _overlay, _xattr])
def test_a_commit_contains_only_the_changes(store: Store, scratch: Path, mark: Callable[[Path], None]) -> None:
    base = trees.told(scratch / "base")
    upper = trees.make(
        scratch / "upper",
        {
            "changed": File(b"after!"),
            "dir": BASE["dir"],
            "dir/inside": BASE["dir/inside"],  # copied up, and equal
            "kept": BASE["kept"],  # the same
            "new/file": File(b"new", mode=0o4711, uid=9),
        },
    )
    mark(upper)
    (upper / "tree/fresh").write_bytes(b"fresh")
    made = commit(store, upper, message="why", author="me", changes=["ENV A=b"])
    assert [b"/".join(change.path) for change in made.equal] == [b"dir/inside", b"kept"]
    told = {(change.kind, b"/".join(change.path)) for change in made.changes}
    assert told >= {("C", b"changed"), ("D", b"gone"), ("A", b"new"), ("A", b"new/file"), ("A", b"tree/fresh")}
    assert told >= {("D", b"tree/a"), ("D", b"tree/c")}
    layer = Path(image.resolve(store, "new:1").lowers[0])
    assert not (layer / "dir").exists()
    assert not (layer / "kept").exists()
    result = shown(store, "docker.io/library/new:1")
    assert result[b"changed"][5] == b"after!"  # type: ignore[index]
    assert result[b"new/file"][1:4] == (0o4711, 9, 0)  # type: ignore[index]
    assert result[b"dir/inside"] == base[b"dir/inside"][:6]
    assert sorted(result) == sorted(
        [b"", b"changed", b"dir", b"dir/inside", b"dir/other", b"kept", b"new", b"new/file", b"tree", b"tree/fresh"]
    )
    config = image.resolve(store, "new:1").config
    assert config.settings.env == ("A=b",)
    assert config.settings.cmd == ("/bin/sh", "-c", "/kept")
    assert [entry.comment for entry in config.history] == ["", "why"]


def test_a_redirected_directory_is_written_whole(store: Store, scratch: Path) -> None:
    upper = trees.make(
        scratch / "upper", {"moved": Dir(mode=0o700), "moved/c": Symlink("elsewhere"), ".wh.tree": File()}
    )
    os.setxattr(upper / "moved", "trusted.overlay.redirect", b"/tree")
    commit(store, upper)
    result = shown(store, "docker.io/library/new:1")
    assert b"tree" not in result
    assert result[b"moved/a/b"][5] == b"deep"  # type: ignore[index]
    assert result[b"moved/c"][5] == b"elsewhere"  # type: ignore[index]
    assert result[b"moved"][1] == 0o700  # type: ignore[index]


def test_attributes_without_data_come_out_with_them(store: Store, scratch: Path) -> None:
    upper = trees.make(scratch / "upper", {})
    with (upper / "changed").open("wb") as file:
        file.truncate(6)
    os.chmod(upper / "changed", 0o600)
    os.setxattr(upper / "changed", "trusted.overlay.metacopy", b"")
    commit(store, upper)
    result = shown(store, "docker.io/library/new:1")
    assert result[b"changed"][1] == 0o600  # type: ignore[index]
    assert result[b"changed"][5] == b"before"  # type: ignore[index]


def test_nothing_changed_is_an_empty_layer(store: Store, scratch: Path) -> None:
    upper = trees.make(scratch / "upper", {"dir": BASE["dir"], "dir/inside": BASE["dir/inside"]})
    made = commit(store, upper)
    assert made.layer.entries == 0
    assert [change.kind for change in made.equal] == ["="]


def test_the_same_upper_gives_the_same_image(store: Store, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1500000000")
    upper = trees.make(scratch / "upper", {"a": File(b"1"), "b/c": File(b"2")})
    first = commit(store, upper)
    for path in (upper / "a", upper / "b/c", upper / "b"):
        os.utime(path, (1, 1_700_000_000))
    assert commit(store, upper).digest == first.digest
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "soon")
    with pytest.raises(LayerError, match="not a number"):
        commit(store, upper)


def test_a_commit_on_no_image_and_on_a_missing_one(store: Store, scratch: Path) -> None:
    upper = trees.make(scratch / "upper", {"a": File(b"1")})
    make_image.commit(store, str(upper), None, make_image.ImageOptions(name="docker.io/library/scratch:1"))
    assert sorted(shown(store, "docker.io/library/scratch:1")) == [b"", b"a"]
    with pytest.raises(NotFound):
        make_image.commit(store, str(upper), "nobody/knows:1", make_image.ImageOptions())
    assert os.listdir(store.aside) == []


def test_a_changed_file_changes_under_all_its_names(store: Store, scratch: Path) -> None:
    lower = trees.make(
        scratch / "l", {"x/one": File(b"old"), "y/two": Link("x/one"), "z": Link("x/one"), "w": Link("x/one")}
    )
    make_image.commit(store, str(lower), None, make_image.ImageOptions(name="docker.io/library/linked:1"))
    origin = {"user.unionfs.origin": b"1-2"}
    upper = trees.make(scratch / "u", {"x/one": File(b"new", xattrs=origin), ".wh.z": File(), "w": File(b"own")})
    make_image.commit(store, str(upper), "linked:1", make_image.ImageOptions(name="docker.io/library/new:1"))
    result = shown(store, "docker.io/library/new:1")
    assert sorted(result) == [b"", b"w", b"x", b"x/one", b"y", b"y/two"]
    assert result[b"y/two"][5] == result[b"x/one"][5] == b"new"  # type: ignore[index]
    assert result[b"w"][5] == b"own"  # type: ignore[index]
    top = Path(image.resolve(store, "new:1").lowers[0])
    assert (top / "x/one").stat().st_ino == (top / "y/two").stat().st_ino


def test_squash_keeps_the_merged_tree(store: Store, scratch: Path) -> None:
    upper = trees.make(scratch / "upper", {"changed": File(b"2"), ".wh.gone": File(), "tree/.wh.a": File()})
    commit(store, upper)
    before = shown(store, "docker.io/library/new:1")
    make_image.commit(
        store,
        str(trees.make(scratch / "third", {"gone/again": File(b"x")})),
        "new:1",
        make_image.ImageOptions(name="t:1"),
    )
    make_image.squash(store, "new:1", make_image.ImageOptions(name="docker.io/library/flat:1"))
    assert shown(store, "docker.io/library/flat:1") == before
    assert len(image.resolve(store, "flat:1").lowers) == 1
    three = shown(store, "t:1")
    make_image.squash(store, "t:1", make_image.ImageOptions(name="docker.io/library/two:1"), keep=1)
    assert shown(store, "docker.io/library/two:1") == three
    assert len(image.resolve(store, "two:1").lowers) == 2
    with pytest.raises(LayerError):
        make_image.squash(store, "new:1", make_image.ImageOptions(), keep=2)


def test_layers_that_depend_on_layers_beneath(store: Store, scratch: Path) -> None:
    tar = trees.tar_of([("dir/new", {}, b"x"), ("linked", {"type": b"1", "linkname": "dir/inside"}, b"")])
    base = images.digest(trees.tar_of([]))
    layout = Path(store.images)
    manifest = json.loads(store.read_blob(store.find("base:1").descriptor.digest))
    config = json.loads(store.read_blob(manifest["config"]["digest"]))
    config["rootfs"]["diff_ids"].append(images.digest(tar))
    digest, size = images.put(layout, tar)
    manifest["layers"].append({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": size})
    digest, size = images.put(layout, json.dumps(config).encode())
    manifest["config"] |= {"digest": digest, "size": size}
    digest, size = images.put(layout, json.dumps(manifest).encode())
    with store.adding():
        store.tag(image.Descriptor(manifest["mediaType"], image.digests.parse(digest), size), "dependent:1")  # type: ignore[attr-defined]
    top = Path(image.resolve(store, "dependent:1").lowers[0])
    st = (top / "dir").stat()
    assert (stat.S_IMODE(st.st_mode), st.st_uid) == (0o750, 3)
    assert (top / "linked").read_bytes() == b"inside"
    assert (top / "linked").stat().st_uid == 3
    assert top.parent.name != images.digest(tar)[7:]  # under its chain id
    assert unpacked.verify(store, top.parent.name) == []
    assert base


def test_verify_finds_every_kind_of_change(store: Store) -> None:
    layer = Path(image.resolve(store, "base:1").lowers[0])
    key = layer.parent.name
    assert unpacked.verify(store, key) == []
    times = (layer / "changed").stat()
    (layer / "changed").write_bytes(b"befora")
    os.utime(layer / "changed", ns=(times.st_atime_ns, times.st_mtime_ns))
    (layer / "gone").unlink()
    (layer / "dir").chmod(0o755)
    os.chown(layer / "dir/inside", 4, 4)
    os.setxattr(layer / "dir/other", "user.x", b"y")
    (layer / "tree/c").unlink()
    (layer / "tree/c").mkdir()
    (layer / "extra").touch()
    found = {one.path: one.what for one in unpacked.verify(store, key)}
    assert found == {
        b"": ("time",),
        b"changed": ("content",),
        b"dir": ("mode",),
        b"dir/inside": ("owner", "group"),
        b"dir/other": ("attributes",),
        b"extra": ("unexpected",),
        b"gone": ("missing",),
        b"tree": ("time",),
        b"tree/c": ("type",),
    }


def test_differences_of_trees(scratch: Path) -> None:
    old = trees.make(scratch / "old", BASE | {"dev": Node(stat.S_IFCHR, (1, 3)), "type": File(b""), "l": Link("kept")})
    new = trees.make(
        scratch / "new",
        {key: value for key, value in BASE.items() if key != "gone"}
        | {
            "changed": File(b"after!"),
            "dir": Dir(mode=0o700, uid=3),
            "tree/c": Symlink("a/d"),
            "dev": Node(stat.S_IFCHR, (1, 5)),
            "type": Dir(),
            "type/in": File(b""),
            "l": File(b"kept", xattrs={"user.x": b"1"}),
        },
    )
    with LayerTrees() as branches:
        found = list(compare.changes(branches.view([str(old)]), branches.view([str(new)])))
        assert list(compare.changes(branches.view([str(old)]), branches.view([str(old)]))) == []
    told = {b"/".join(change.path): (change.kind, *change.what) for change in found}
    assert told == {
        b"": ("C",),
        b"changed": ("C", "content"),
        b"dev": ("C", "device"),
        b"dir": ("C", "mode"),
        b"gone": ("D",),
        b"l": ("C", "attributes"),
        b"tree": ("C",),
        b"tree/c": ("C", "target"),
        b"type": ("C", "type"),
        b"type/in": ("A",),
    }


@pytest.mark.parametrize("dialect", ["aufs", OVERLAY])
def test_a_layer_survives_every_dialect(scratch: Path, dialect: str) -> None:
    things: dict[str, Thing] = {".wh.gone": File(), "d/.wh..wh..opq": File(), "d/f": File(b"1"), "e/.wh.x": File()}
    first = trees.tar_of([(name, {"mode": 0o600, "mtime": 0} if ".wh." in name else {}, b"") for name in things])
    trees.unpacked(first, scratch / "start")
    sink, again = io.BytesIO(), io.BytesIO()
    with LayerTrees() as branches:
        pack.pack(pack.layer_items(branches.open(str(scratch / "start"))), sink, "none")
    (scratch / "other").mkdir()
    root_fd = os.open(scratch / "other", os.O_RDONLY)
    from layers.resolve_parents import resolve_parents
    from layers.unpack import unpack

    options = Options(dialect=dialect)
    resolve_parents(unpack(io.BytesIO(sink.getvalue()), root_fd, options), root_fd, options, lambda path: None)
    os.close(root_fd)
    if dialect == OVERLAY:
        assert stat.S_ISCHR((scratch / "other/gone").lstat().st_mode)
        assert os.getxattr(scratch / "other/d", "trusted.overlay.opaque") == b"y"
        assert trees.names(scratch / "other") == ["d", "d/f", "e", "e/x", "gone"]
    with LayerTrees() as branches:
        pack.pack(pack.layer_items(branches.open(str(scratch / "other"))), again, "none")
    assert again.getvalue() == sink.getvalue()


def test_check_finds_faults(scratch: Path) -> None:
    lower = trees.make(scratch / "lower", {"there": File(), "d/x": File()})
    layer = trees.make(
        scratch / "layer",
        {
            ".wh.": File(),
            ".wh...": File(),
            ".wh..wh.orph": Dir(),
            ".wh.there": File(),
            ".wh.orphan": File(),
            ".wh.both": File(),
            "both": File(),
            "dev": Node(stat.S_IFCHR),
            "new/.wh..wh..opq": File(),
            "owner": File(xattrs={"user.containers.override_stat": b"nonsense"}),
            "owner2": Dir(xattrs={"user.containers.override_stat": b"0:0:755:file"}),
            "moved": Dir(xattrs={"trusted.overlay.redirect": b"/nowhere"}),
            "bad": Dir(xattrs={"user.overlay.redirect": b"/../etc"}),
        },
    )
    with LayerTrees() as branches:
        found = list(lint.of_directory(branches.open(str(layer)), branches.view([str(lower)]), "aufs"))
    told = sorted((one.path, one.what) for one in found)
    for path, what in [
        (b".wh.", "a whiteout that hides no name"),
        (b".wh...", "a whiteout that hides no name"),
        (b".wh..wh.orph", "bookkeeping"),
        (b"both", "both a whiteout and an entry"),
        (b"dev", "of the overlay dialect"),
        (b"dev", "a name that no layer below has"),
        (b"orphan", "a name that no layer below has"),
        (b"new", "no layer below has such a directory"),
        (b"owner", "malformed"),
        (b"owner2", "another type of file"),
        (b"moved", "which no layer below has"),
        (b"bad", "not followed"),
    ]:
        assert any(where == path and what in why for where, why in told), (path, what, told)
    assert len(told) == 12
    with LayerTrees() as branches:
        assert list(lint.of_directory(branches.open(str(lower)), None, None)) == []


def test_check_reads_tars(scratch: Path) -> None:
    good = trees.tar_of([("d", {"type": b"5"}, b""), ("d/f", {}, b""), (".wh.x", {}, b"")])
    assert list(lint.of_tar(io.BytesIO(good))) == []
    bad = trees.tar_of([("f", {}, b""), ("f", {}, b""), (".wh.f", {}, b""), ("f/below", {}, b""), ("../x", {}, b"")])
    assert sorted(one.what.split(" ")[0] for one in lint.of_tar(io.BytesIO(bad))) == sorted(["the", "both", "it", "a"])


def test_owners_that_cannot_be_set_are_stored(scratch: Path) -> None:
    tar = trees.tar_of(
        [
            ("f", {"uid": 5, "gid": 6, "mode": 0o4750}, b"x"),
            ("d", {"type": b"5", "uid": 7, "mode": 0o555}, b""),
            ("dev", {"type": b"3", "devmajor": 1, "devminor": 3, "mode": 0o666}, b""),
            ("s", {"type": b"2", "linkname": "f"}, b""),
        ]
    )
    trees.unpacked(tar, scratch / "layer", owners="noted")
    layer = scratch / "layer"
    assert os.getxattr(layer / "f", "user.containers.override_stat") == b"5:6:4750:file"
    assert stat.S_IMODE((layer / "f").stat().st_mode) == 0o750
    assert os.getxattr(layer / "d", "user.containers.override_stat") == b"7:0:0555:dir"
    assert os.getxattr(layer / "dev", "user.containers.override_stat") == b"0:0:0666:char-1-3"
    assert (layer / "f").stat().st_uid == os.geteuid()
    packed = io.BytesIO()
    with LayerTrees() as branches:
        pack.pack(pack.layer_items(branches.open(str(layer))), packed, "none")
    trees.unpacked(packed.getvalue(), scratch / "real")
    told = trees.told(scratch / "real")
    assert told[b"f"][1:4] == (0o4750, 5, 6)
    assert told[b"d"][1:3] == (0o555, 7)
    assert told[b"dev"][5] == os.makedev(1, 3)
