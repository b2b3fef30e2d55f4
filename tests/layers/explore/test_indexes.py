"""Where indexes are kept: made once for a store, made again when they are damaged, removed with their image."""

from __future__ import annotations

import os
import tarfile
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path

import pytest

from layers import gc
from layers.cli import stacks
from layers.errors import Refused
from layers.explore import columns, indexes
from layers.explore.tree_index import ROOT, TreeIndex
from layers.store import Store
from tests.layers import images, trees
from tests.layers.explore.building import Member, of_tars, tree_of

BASE: tuple[Member, ...] = (("etc/a", {}, b"one"), ("etc/b", {}, b"two"))
TOP: tuple[Member, ...] = (("etc/b", {}, b"three"), ("usr/c", {}, b"x" * 1000))


def store_of(root: Path, *layers: tuple[Member, ...]) -> Store:
    images.layout(root / "images", [trees.tar_of(list(members)) for members in layers], name="docker.io/library/t:1")
    return Store(os.fspath(root))


def opened(store: Store, keep: ExitStack, told: list[tuple[int, int]] | None = None) -> TreeIndex:
    stack = stacks.of_image(store, store.find("t:1"))
    heard = [] if told is None else told
    return indexes.open_tree(stack.layers, store, keep, lambda done, of: heard.append((done, of)))


def test_layers_are_read_once(scratch: Path) -> None:
    store = store_of(scratch, BASE, TOP)
    told: list[tuple[int, int]] = []
    with ExitStack() as keep:
        first = opened(store, keep, told)
        assert first.size(ROOT, 1) == (3 + 5 + 1000, 3)
    assert told == [(1, 2), (2, 2)]
    assert sorted(os.path.splitext(name)[1] for name in os.listdir(store.indexes)) == [".layer", ".layer", ".tree"]
    for blob in (scratch / "images/blobs/sha256").iterdir():
        if blob.stat().st_size > 0 and blob.read_bytes()[:2] == b"\x1f\x8b":
            blob.unlink()  # the layers are needed no more
    told.clear()
    with ExitStack() as keep:
        again = opened(store, keep, told)
        assert again.size(ROOT, 1) == (3 + 5 + 1000, 3)
        assert again.layers[1].path(0) == b"etc/b"
    assert told == []


def test_an_image_with_a_layer_more_reads_that_layer_only(scratch: Path) -> None:
    store = store_of(scratch, BASE)
    with ExitStack() as keep:
        opened(store, keep)
    store = store_of(scratch, BASE, TOP)
    told: list[tuple[int, int]] = []
    with ExitStack() as keep:
        assert opened(store, keep, told).size(ROOT, 1)[1] == 3
    assert told == [(1, 1)]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign", "old", "other"])
@pytest.mark.parametrize("ending", [indexes.LAYER, indexes.TREE])
def test_a_damaged_index_is_made_again(scratch: Path, damage: str, ending: str) -> None:
    store = store_of(scratch, BASE, TOP)
    with ExitStack() as keep:
        opened(store, keep)
    (victim, *_) = sorted(Path(store.indexes).glob(f"*{ending}"))
    whole = victim.read_bytes()
    data = {
        "cut": whole[:-8],
        "flipped": whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:],
        "empty": b"",
        "foreign": b"#!/bin/sh\n" * 20,
        "old": whole[:15] + b"0" + whole[16:],
        "other": whole,
    }[damage]
    victim.write_bytes(data)
    if damage == "other":
        with open(victim, "wb+") as file:
            columns.write(file, {}, {"kind": b"", "names": b""})
    with ExitStack() as keep:
        assert opened(store, keep).size(ROOT, 1) == (3 + 5 + 1000, 3)
    assert victim.read_bytes() == whole


def test_a_layer_with_another_digest_is_refused(scratch: Path) -> None:
    (layer,) = of_tars(BASE)
    layer.diff_id = "sha256:" + "0" * 64
    store = store_of(scratch, BASE)
    with ExitStack() as keep, pytest.raises(Refused, match="the image says sha256:0000"):
        indexes.open_tree([layer], store, keep)
    assert os.listdir(store.indexes) == []
    assert os.listdir(store.aside) == []


def test_a_cut_off_tar_is_refused_also_from_another_process(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexes, "_MANY_BYTES", 0)
    (layer,) = of_tars(BASE)
    layer.tar, layer.diff_id, layer.packed = layer.tar[:514], "sha256:" + "0" * 64, 1
    with ExitStack() as keep, pytest.raises(Refused, match="cut off"):
        indexes.open_tree([layer], store_of(scratch, BASE), keep)


def test_several_processes_make_the_same_index(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexes, "_MANY_BYTES", 0)
    store = store_of(scratch, BASE, TOP)
    told: list[tuple[int, int]] = []
    with ExitStack() as keep, tree_of(of_tars(BASE, TOP)) as expected:
        found = opened(store, keep, told)
        assert [bytes(found.stored), bytes(found.by)] == [bytes(expected.stored), bytes(expected.by)]
    assert told == [(1, 2), (2, 2)]


def test_gc_removes_the_indexes_of_images_that_are_gone(scratch: Path) -> None:
    store = store_of(scratch, BASE, TOP)
    with ExitStack() as keep:
        opened(store, keep)
    size = sum(path.stat().st_size for path in Path(store.indexes).iterdir())
    assert gc.collect(store).size == 0
    assert len(os.listdir(store.indexes)) == 3
    store.untag("docker.io/library/t:1")
    dry = gc.collect(store, dry=True)
    assert len(os.listdir(store.indexes)) == 3
    freed = gc.collect(store)
    assert os.listdir(store.indexes) == []
    assert freed.size == dry.size > size


def test_layers_without_an_id_are_indexed_without_a_store(scratch: Path) -> None:
    layers = of_tars(BASE, TOP)
    store = Store(os.fspath(scratch / "none"))
    with ExitStack() as keep:
        assert indexes.open_tree(layers, store, keep).size(ROOT, 1)[1] == 3
    assert not (scratch / "none").exists()


def large(entries: int, layers: int) -> list[bytes]:
    """Tars of small files in directories of ten; a part of what lower layers have is replaced or removed."""
    made: list[bytes] = []
    for number in range(layers):
        sink = BytesIO()
        with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for count in range(entries // layers):
                owner = number if count % 20 else max(number - 1, 0)
                name = f"usr/lib/part{owner}/package{count // 10}/file-{count}.py"
                if count % 60 == 20 and number:
                    name = f"usr/lib/part{owner}/package{count // 10}/.wh.file-{count}.py"
                info = tarfile.TarInfo(name)
                info.size = 0 if ".wh." in name else 100 + count % 300
                tar.addfile(info, BytesIO(bytes(info.size)))
        made.append(sink.getvalue())
    return made


def test_many_entries_are_counted_as_tar_counts_them(scratch: Path) -> None:
    """The 500,000 entries of the requirement are measured by benchmarks/explore.py; here are 20,000 in 20 layers."""
    tars = large(20_000, 20)
    images.layout(scratch / "images", tars, name="docker.io/library/t:1")
    store = Store(os.fspath(scratch))
    with ExitStack() as keep:
        tree = opened(store, keep)
        members = []
        for data in tars:
            with tarfile.open(fileobj=BytesIO(data)) as tar:
                members.append(tar.getmembers())
        for level, layer in enumerate(members):
            files = [one for one in layer if ".wh." not in one.name]
            assert tree.brought(ROOT, level) == (sum(one.size for one in files), len(files))
        showing: dict[str, int] = {}
        for layer in members:
            for one in layer:
                showing.pop(one.name.replace(".wh.", ""), None)
            showing |= {one.name: one.size for one in layer if ".wh." not in one.name}
        assert tree.size(ROOT, tree.top) == (sum(showing.values()), len(showing))
