"""Copies of a container that runs leave out what it removes between the listing of a directory and the reading."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from layers import compare, make_image, pack
from layers.errors import LayerError
from layers.make_image import ImageOptions
from layers.store import Store
from layers.tree import LayerTrees
from unionfs.containers import tarstreams
from unionfs.containers.copy import Copy


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with a file of two names, a directory and a file."""
    top = tmp_path / "tree"
    (top / "d/e").mkdir(parents=True)
    (top / "d/e/f").write_text("f\n")
    (top / "first").write_text("x\n")
    os.link(top / "first", top / "second")
    return top


@pytest.fixture
def listed_before(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The listing of `tree` is that from before `d` and `first` were removed."""
    listing, inode, real = os.listdir(tree), tree.stat().st_ino, os.listdir
    shutil.rmtree(tree / "d")
    (tree / "first").unlink()

    def listdir(path: int | str) -> list[str]:
        return listing if os.stat(path).st_ino == inode else real(path)

    monkeypatch.setattr(os, "listdir", listdir)


def test_cp(tree: Path, tmp_path: Path, listed_before: None) -> None:
    fd = os.open(tmp_path, os.O_PATH)
    Copy((os.getuid(), os.getgid())).run(fd, "tree", fd, "copy")
    os.close(fd)
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["second"]
    assert (tmp_path / "copy/second").read_text() == "x\n"


def test_cp_as_a_stream(tree: Path, tmp_path: Path, listed_before: None) -> None:
    fd = os.open(tmp_path, os.O_PATH)
    sink = io.BytesIO()
    tarstreams.write(fd, "tree", sink, "t")
    with pytest.raises(FileNotFoundError):
        tarstreams.write(fd, "missing", sink, "t")
    os.close(fd)
    sink.seek(0)
    with tarfile.open(fileobj=sink) as archive:
        assert [(entry.name, entry.isfile()) for entry in archive] == [("t", False), ("t/second", True)]


def test_export(tree: Path) -> None:
    sink = io.BytesIO()
    with LayerTrees() as branches:
        view = branches.view([os.fspath(tree)])
        for path in ((), (b"d",), (b"d", b"e")):
            view.branches[0].scan(path)  # kept: what is removed now was listed
        shutil.rmtree(tree / "d")
        (tree / "first").unlink()
        pack.pack(pack.merged_items(view), sink, "none")
    sink.seek(0)
    with tarfile.open(fileobj=sink) as archive:
        assert [(entry.name.strip("./"), entry.isfile()) for entry in archive] == [("", False), ("second", True)]


def test_commit(tree: Path, tmp_path: Path) -> None:
    """What is removed after the comparison is no part of the layer; where it hid something, it is a whiteout."""
    (tmp_path / "lower/d").mkdir(parents=True)
    sink = io.BytesIO()
    with LayerTrees() as branches:
        old = branches.view([os.fspath(tmp_path / "lower")])
        new = branches.view([os.fspath(tree), os.fspath(tmp_path / "lower")])
        changes = list(compare.changes(old, new))
        shutil.rmtree(tree / "d")
        (tree / "first").unlink()
        pack.pack(pack.change_items(old, new, changes), sink, "none")
    sink.seek(0)
    with tarfile.open(fileobj=sink) as archive:
        names = [entry.name.strip("./") for entry in archive]
    assert names == ["", "wh.d", "second"]


def test_a_file_that_shrinks_ends_with_zeros(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with tar(1): its size is in the header already. Without a word of it that is an error, for layers."""
    large = tree / "first"
    large.write_bytes(b"x" * 200_000)
    real = os.pread
    shrunk: list[str] = []

    def pread(fd: int, size: int, offset: int) -> bytes:
        if os.fstat(fd).st_ino == large.stat().st_ino:
            large.write_bytes(b"y" * 100_000)
        return real(fd, size, offset)

    monkeypatch.setattr(os, "pread", pread)
    sink = io.BytesIO()
    with LayerTrees() as branches:
        pack.pack(pack.merged_items(branches.view([os.fspath(tree)])), sink, "none", on_shrunk=shrunk.append)
        sink.seek(0)
        with tarfile.open(fileobj=sink) as archive:
            found = archive.extractfile("first")
            assert found is not None
            assert found.read() == b"y" * 100_000 + bytes(100_000)
        assert shrunk == ["first"]
        large.write_bytes(b"x" * 200_000)
        with pytest.raises(LayerError, match="became shorter"):
            pack.pack(pack.merged_items(branches.view([os.fspath(tree)])), io.BytesIO(), "none")


def test_a_layer_of_a_file_that_shrinks(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """commit and squash do as export does."""
    store, shrunk, real = Store(os.fspath(tmp_path / "store")), list[str](), os.pread
    large, name = tree / "first", "docker.io/library/a:1"
    large.write_bytes(b"x" * 200_000)

    def pread(fd: int, size: int, offset: int) -> bytes:
        if os.fstat(fd).st_size == 200_000:
            os.truncate(f"/proc/self/fd/{fd}", 100_000)
        return real(fd, size, offset)

    monkeypatch.setattr(os, "pread", pread)
    make_image.commit(store, os.fspath(tree), None, ImageOptions(name=name), on_shrunk=shrunk.append)
    assert shrunk == ["first"]
    large.write_bytes(b"x" * 200_000)
    with pytest.raises(LayerError, match="became shorter"):
        make_image.commit(store, os.fspath(tree), None, ImageOptions())
    made = make_image.squash(store, name, ImageOptions(), on_shrunk=shrunk.append)  # it has the zeros
    assert (shrunk, made.layer.tar_size > 200_000) == (["first", "first"], True)


def test_cp_of_a_file_that_shrinks(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = tree / "d/e/f"
    large.write_bytes(b"x" * 200_000)
    real = tarfile.TarFile.addfile

    def addfile(self: tarfile.TarFile, entry: tarfile.TarInfo, data: object = None) -> None:
        if entry.size == 200_000:
            large.write_bytes(b"y" * 100_000)
        real(self, entry, data)  # type: ignore[arg-type]

    monkeypatch.setattr(tarfile.TarFile, "addfile", addfile)
    fd, sink = os.open(tree, os.O_PATH), io.BytesIO()
    tarstreams.write(fd, "d", sink, "d")
    os.close(fd)
    sink.seek(0)
    with tarfile.open(fileobj=sink) as archive:
        found = archive.extractfile("d/e/f")
        assert found is not None
        assert found.read() == b"y" * 100_000 + bytes(100_000)
