"""Layers put on top of each other, one by one, show the same as their union at once."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from unionfs.drivers import merged_copy


def _layers(scratch: Path) -> list[Path]:
    """Three layers, lowest first, with every mark that an unpacked layer can have."""
    low, middle, top = (scratch / name for name in ("low", "middle", "top"))
    for path in ("a/deep/down", "b/kept", "opaque/old", "gone/x", "becomes-file/x", "all/x"):
        (low / path).parent.mkdir(parents=True, exist_ok=True)
        (low / path).write_text(f"low {path}\n")
    (low / "becomes-dir").write_text("a file\n")
    (low / "link1").write_text("linked\n")
    os.link(low / "link1", low / "link2")
    os.symlink("a/deep", low / "symlink")
    os.mkfifo(low / "fifo")
    for path in ("a/deep/new", "opaque/new", "becomes-dir/x", "b/other"):
        (middle / path).parent.mkdir(parents=True, exist_ok=True)
        (middle / path).write_text(f"middle {path}\n")
    (middle / "opaque/.wh..wh..opq").touch()
    (middle / ".wh.gone").touch()
    (middle / "becomes-file").write_text("now a file\n")
    (middle / "b").chmod(0o700)
    os.setxattr(middle / "b", "user.mark", b"middle")
    os.utime(middle / "b", ns=(5, 10**18))
    (top / "a/deep").mkdir(parents=True)
    (top / "a/deep/.wh.down").touch()
    (top / "gone").mkdir()
    (top / "gone/again").write_text("again\n")
    (top / "link1").write_text("apart\n")
    (top / "symlink").mkdir()
    os.utime(top / "a", ns=(7, 10**18 + 7))
    return [low, middle, top]


def _shown(root: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in (root, *root.rglob("*")):
        st = path.lstat()
        content: object = None
        if stat.S_ISREG(st.st_mode):
            content = (path.read_bytes(), st.st_nlink)
        elif stat.S_ISLNK(st.st_mode):
            content = os.readlink(path)
        attributes = (
            {name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path)}
            if (not stat.S_ISLNK(st.st_mode))
            else {}
        )
        found[os.fspath(path.relative_to(root))] = (st.st_mode, st.st_uid, st.st_mtime_ns, content, attributes)
    return found


@pytest.mark.parametrize("root_is_opaque", [False, True])
def test_one_by_one_is_as_at_once(scratch: Path, root_is_opaque: bool) -> None:
    layers = _layers(scratch)
    if root_is_opaque:
        (layers[1] / ".wh..wh..opq").touch()
    at_once, one_by_one = scratch / "at-once", scratch / "one-by-one"
    at_once.mkdir()
    one_by_one.mkdir()
    merged_copy.add([os.fspath(layer) for layer in reversed(layers)], os.fspath(at_once))
    for layer in layers:
        merged_copy.put_on_top(os.fspath(layer), os.fspath(one_by_one))
    assert _shown(one_by_one) == _shown(at_once)
    assert ("a/deep/down" in _shown(at_once), "gone/again" in _shown(at_once)) == (False, True)


def test_a_mark_that_needs_other_layers_is_refused(scratch: Path) -> None:
    layer, target = scratch / "layer", scratch / "target"
    (layer / "moved").mkdir(parents=True)
    os.setxattr(layer / "moved", "user.overlay.redirect", b"/elsewhere")
    target.mkdir()
    with pytest.raises(OSError, match="a mark that needs other layers"):
        merged_copy.put_on_top(os.fspath(layer), os.fspath(target))


def test_a_directory_that_gets_entries_keeps_its_times(scratch: Path) -> None:
    lower, target = scratch / "lower", scratch / "target"
    for root in (lower, target):
        (root / "etc").mkdir(parents=True)
    (lower / "etc/hostname").touch()
    os.utime(target / "etc", ns=(5, 10**18))
    merged_copy.add([os.fspath(lower)], os.fspath(target))
    assert (target / "etc/hostname").exists()
    assert (target / "etc").stat().st_mtime_ns == 10**18
