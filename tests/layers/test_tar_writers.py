"""One tree in the tars of all tools: what we unpack is what GNU tar and umoci unpack, with owners, times and holes."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from tests.layers import registries, trees
from tests.layers.trees import Dir, File, Link, Node, Symlink, Thing
from tests.support import process

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="files of other owners need root")

_LONG: Final = "/".join(["d" * 60] * 3)  # more than the 100 bytes of a name, and no more than the prefix holds
_HOLES: Final = 3 << 20
SIMPLE: Final[dict[str, Thing]] = {
    "d": Dir(mode=0o750, uid=3, gid=4),
    "d/f": File(b"data" * 200, mode=0o4711, uid=1000, gid=77),
    "d/empty": File(mode=0o600),
    "d/s": Symlink("../nowhere", uid=5),
    "d/l": Link("d/f"),
    "fifo": Node(stat.S_IFIFO, mode=0o640),
    "dev": Node(stat.S_IFBLK, (7, 300), mode=0o660),
    "holes": File(b"start", size=_HOLES),
    "sp ace\n": File(b"1"),
}
"""What the oldest format can hold."""
LONG: Final[dict[str, Thing]] = {
    f"{_LONG}/f": File(b"deep"),
    f"{_LONG}/{'s' * 30}": Symlink("t" * 90),
    "n\u00e4me": File(b"2"),
    "big": File(b"3", uid=2_000_000, gid=2_000_001),
}
BEYOND: Final[dict[str, Thing]] = {
    "e" * 200: File(b"4", uid=3_000_000_000),
    "target": Symlink("t" * 300),
    "old": File(b"5", mtime_ns=-5_000_000_000),
}
PAX: Final[dict[str, Thing]] = {
    "attributes": File(b"6", xattrs={"user.a": b"1\n2", "user.zero": b"\0=\0"}),
    "fraction": File(b"7"),
}

_PYTHON: Final = """
import sys, tarfile
with tarfile.open(sys.argv[1], "w", format=int(sys.argv[2])) as archive:
    archive.add(".")
"""

WRITERS: Final[list[tuple[str, list[str], list[dict[str, Thing]]]]] = [
    ("tar v7", ["tar", "--format=v7", "--exclude=./fifo", "--exclude=./dev", "-cf", "{}", "."], [SIMPLE]),
    ("tar ustar", ["tar", "--format=ustar", "-cf", "{}", "."], [SIMPLE, LONG]),
    ("tar gnu", ["tar", "--format=gnu", "-cSf", "{}", "."], [SIMPLE, LONG, BEYOND]),
    ("tar oldgnu", ["tar", "--format=oldgnu", "-cSf", "{}", "."], [SIMPLE, LONG, BEYOND]),
    ("tar pax", ["tar", "--format=posix", "--xattrs", "-cSf", "{}", "."], [SIMPLE, LONG, BEYOND, PAX]),
    ("tar pax 0.0", ["tar", "--format=posix", "--sparse-version=0.0", "-cSf", "{}", "."], [SIMPLE, LONG]),
    ("tar pax 0.1", ["tar", "--format=posix", "--sparse-version=0.1", "-cSf", "{}", "."], [SIMPLE, LONG]),
    ("bsdtar pax", ["bsdtar", "--format", "pax", "-cf", "{}", "."], [SIMPLE, LONG, BEYOND, PAX]),
    ("bsdtar gnutar", ["bsdtar", "--format", "gnutar", "-cf", "{}", "."], [SIMPLE, LONG]),
    ("busybox", ["busybox", "tar", "-cf", "{}", "."], [SIMPLE, LONG]),
    ("Python gnu", [sys.executable, "-c", _PYTHON, "{}", "1"], [SIMPLE, LONG, BEYOND]),
    ("Python pax", [sys.executable, "-c", _PYTHON, "{}", "2"], [SIMPLE, LONG, BEYOND]),
    ("cpio", ["sh", "-c", 'find . -print0 | cpio --quiet -0 -o -H ustar -F "$1"', "sh", "{}"], [SIMPLE]),
    ("7z", ["7z", "a", "-ttar", "-snl", "-bd", "{}", "."], [{"d": Dir(), "d/f": File(b"data" * 200), "e": File()}]),
]


@pytest.fixture(scope="module")
def empty_layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OCI layout with the image `t`, which has no layers."""
    registries.need("umoci")
    layout = tmp_path_factory.mktemp("umoci") / "layout"
    process.run(["umoci", "init", "--layout", layout])
    process.run(["umoci", "new", "--image", f"{layout}:t"])
    return layout


def tree_of(root: Path) -> dict[bytes, tuple[Any, ...]]:
    """The tree without its root, with whole seconds: what umoci and old formats keep of times."""
    found = {}
    for path, (kind, mode, uid, gid, mtime, what, link, xattrs) in trees.told(root).items():
        if path:
            found[path] = (kind, mode, uid, gid, mtime // 10**9, what, link, xattrs)
    return found


def stored(root: Path) -> int:
    """Bytes on the disk of the file with holes."""
    return (root / "holes").stat().st_blocks * 512 if (root / "holes").exists() else 0


@pytest.mark.parametrize(("command", "parts"), [one[1:] for one in WRITERS], ids=[one[0] for one in WRITERS])
def test_tars_of_all_tools_are_unpacked_alike(
    scratch: Path, empty_layout: Path, command: list[str], parts: list[dict[str, Thing]]
) -> None:
    if shutil.which(command[0]) is None or (command[0] == "sh" and shutil.which("cpio") is None):
        pytest.skip(f"{command[0]} is not installed")
    things = {name: thing for part in parts for name, thing in part.items()}
    tree = trees.make(scratch / "tree", things)
    tar = scratch / "t.tar"
    process.run([word.format(tar) for word in command], cwd=tree)
    trees.unpacked(tar.read_bytes(), scratch / "ours")
    (scratch / "theirs").mkdir()
    options = ["--numeric-owner", "--xattrs", "--xattrs-include=*", "--delay-directory-restore"]
    process.run(["tar", *options, "-xpf", tar, "-C", scratch / "theirs"])
    ours = tree_of(scratch / "ours")
    assert ours == tree_of(scratch / "theirs")
    assert len(ours) >= len(things) - 2
    sparse = any("S" in word and word.startswith("-c") for word in command) or command[:3] == [
        "bsdtar",
        "--format",
        "pax",
    ]
    assert not sparse or stored(scratch / "ours") <= stored(tree) + 4096
    if command[0] == "tar" and "gnu" in command[1]:
        return  # umoci knows no files with holes in GNU's own formats
    layout = shutil.copytree(empty_layout, scratch / "layout")
    process.run(["umoci", "raw", "add-layer", "--image", f"{layout}:t", tar])
    process.run(["umoci", "unpack", "--image", f"{layout}:t", scratch / "bundle"])
    assert ours == tree_of(scratch / "bundle/rootfs")
