"""Packing then unpacking gives the tree back; the same tree gives the same bytes; other tars agree."""

from __future__ import annotations

import io
import os
import stat
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from layers import attributes, pack, safe_open, unpack
from layers.tarheader import Header, plain_entry
from layers.tarread import entry_of
from layers.tree import LayerTrees
from tests.layers import trees
from tests.layers.trees import Dir, File, Link, Node, Symlink, Thing
from tests.support import process, share
from unionfs import write_all

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="files of other owners and devices need root")


def packed(root: Path, compression: str = "none", epoch: int | None = None) -> tuple[bytes, pack.Packed]:
    sink = io.BytesIO()
    with LayerTrees() as branches:
        result = pack.pack(
            pack.layer_items(branches.open(str(root))),
            sink,
            compression,
            epoch=None if epoch is None else pack.Epoch(epoch),
        )
    return sink.getvalue(), result


FULL: dict[str, Thing] = {
    "empty": Dir(),
    "dir": Dir(mode=0o1777, uid=7, gid=8, xattrs={"user.d": b"1"}),
    "dir/file": File(b"hello", mode=0o4755, uid=1000, gid=2**31, xattrs={"user.x": bytes(range(256))}),
    "dir/second": Link("dir/file"),
    "unreadable": File(b"x", mode=0),
    "large": File(os.urandom(3 << 20), mtime_ns=-5_000_000_001),
    "sparse": File(b"head", size=1 << 22),
    "zeros": File(b"", size=1 << 20),
    "link": Symlink("dir/file", uid=3),
    "dangling": Symlink("/nowhere/" + "x" * 300),
    "two": Link("dangling"),
    "fifo": Node(stat.S_IFIFO),
    "tty": Node(stat.S_IFCHR, (5, 1)),
    "disk": Node(stat.S_IFBLK, (8, 16), mode=0o660),
    "l" * 255: File(b"long name"),
    "/".join(["deep" * 20] * 20): File(b"long path"),
    os.fsdecode(b"not utf-8 \xff\xfe\n"): File(b"bytes"),
    "späß": File(b"not ascii"),
    "capable": File(b"#!", mode=0o755, xattrs={"security.capability": bytes.fromhex("0100000200200000" + "00" * 12)}),
}


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_a_tree_with_everything_is_packed_and_unpacked_unchanged(scratch: Path, compression: str) -> None:
    tree = trees.make(scratch / "tree", FULL)
    data, result = packed(tree, compression)
    unpacked = trees.unpacked(data, scratch / "again")
    assert trees.told(scratch / "again") == trees.told(tree)
    assert unpacked.diff_id == result.diff_id
    assert result.size == len(data)


def test_holes_come_back_as_holes(scratch: Path) -> None:
    tree = trees.make(scratch / "tree", {"sparse": File(b"x" * 5000, size=1 << 24)})
    with (tree / "sparse").open("r+b") as file:
        file.seek(1 << 23)
        file.write(b"y" * 4096)
    data, _ = packed(tree)
    assert len(data) < 1 << 16
    trees.unpacked(data, scratch / "again")
    assert trees.told(scratch / "again")[b"sparse"][5] == (tree / "sparse").read_bytes()
    assert (scratch / "again" / "sparse").stat().st_blocks == (tree / "sparse").stat().st_blocks


def test_gnu_tar_reads_our_tars_and_we_read_its_tars(scratch: Path) -> None:
    tree = trees.make(scratch / "tree", FULL)
    data, _ = packed(tree)
    (scratch / "ours.tar").write_bytes(data)
    (scratch / "by-tar").mkdir()
    options = ("--xattrs", "--xattrs-include=*", "--numeric-owner", "--sparse")
    process.run(["tar", *options, "-xpf", scratch / "ours.tar", "-C", scratch / "by-tar"])
    assert trees.told(scratch / "by-tar") == trees.told(tree)
    process.run(["tar", *options, "--format=pax", "-cf", scratch / "theirs.tar", "-C", tree, "."])
    trees.unpacked((scratch / "theirs.tar").read_bytes(), scratch / "again")
    assert trees.told(scratch / "again") == trees.told(tree)


@pytest.mark.parametrize("sparse_version", ["0.0", "0.1", "1.0"])
def test_every_form_of_sparse_file_is_read(scratch: Path, sparse_version: str) -> None:
    tree = trees.make(scratch / "tree", {"sparse": File(b"x" * 5000, size=1 << 22)})
    made = ("tar", "--format=pax", f"--sparse-version={sparse_version}", "--sparse", "-cf", scratch / "s.tar")
    process.run([*made, "-C", tree, "sparse"])
    trees.unpacked((scratch / "s.tar").read_bytes(), scratch / "pax")
    process.run(["tar", "--format=gnu", "--sparse", "-cf", scratch / "g.tar", "-C", tree, "sparse"])
    trees.unpacked((scratch / "g.tar").read_bytes(), scratch / "gnu")
    assert (scratch / "pax/sparse").read_bytes() == (scratch / "gnu/sparse").read_bytes()
    assert (scratch / "pax/sparse").read_bytes() == (tree / "sparse").read_bytes()


def test_equal_trees_give_equal_bytes_and_the_epoch_is_honoured(scratch: Path) -> None:
    one = trees.make(scratch / "one", FULL)
    other = trees.make(scratch / "other", dict(sorted(FULL.items(), key=lambda item: isinstance(item[1], Link))))
    os.utime(one, ns=(5, 6))
    os.utime(other, ns=(9, 6))
    for compression in ("none", "gzip", "zstd"):
        assert packed(one, compression) == packed(other, compression)
    for later, root in enumerate((one, other)):
        os.utime(root / "dir/file", (0, 1_700_000_000 + later))
    assert packed(one)[0] != packed(other)[0]
    assert packed(one, epoch=1_500_000_000) == packed(other, epoch=1_500_000_000)


_NAMES = st.one_of(
    st.sampled_from(["a", "b", "c", "d", "é", "x" * 255, "\udcff"]),
    st.text(min_size=1, max_size=40).filter(
        lambda s: s not in (".", "..") and not set("/\0") & set(s) and not s.startswith(".wh.")
    ),
)
_ID = st.sampled_from([0, 1, 1000, 65534, 2**21, 2**32 - 2])
_XATTRS = st.dictionaries(st.sampled_from(["user.a", "user.b c"]), st.binary(max_size=100), max_size=2)
_TIMES = st.one_of(st.integers(0, 2**33 * 10**9), st.integers(-(10**18), 0), st.just(10**18))
_MODES = st.integers(0, 0o7777)
_THINGS = st.one_of(
    st.builds(File, st.binary(max_size=3000), _MODES, _ID, _ID, _XATTRS, _TIMES, st.sampled_from([0, 0, 70000])),
    st.builds(Dir, _MODES, _ID, _ID, _XATTRS, _TIMES),
    st.builds(Symlink, st.sampled_from(["x", "/y/z", "é" * 200]), _ID, _ID, _TIMES),
    st.builds(Node, st.just(stat.S_IFIFO), st.just((0, 0)), _MODES, _TIMES),
)


@st.composite
def _trees(draw: st.DrawFn) -> dict[str, Thing]:
    """A random tree: names are put into directories that exist by then."""
    things: dict[str, Thing] = {}
    directories = [""]
    for _ in range(draw(st.integers(0, 12))):
        name = os.path.join(draw(st.sampled_from(directories)), draw(_NAMES))
        if name in things or len(os.fsencode(os.path.basename(name))) > 255:
            continue
        files = [other for other, thing in things.items() if isinstance(thing, File | Symlink)]
        if files and draw(st.integers(0, 5)) == 0:
            things[name] = Link(draw(st.sampled_from(files)))
            continue
        thing = draw(_THINGS)
        things[name] = thing
        if isinstance(thing, Dir):
            directories.append(name)
    return things


@settings(max_examples=60)
@given(_trees(), st.sampled_from(["none", "gzip", "zstd"]))
def test_any_tree_is_packed_and_unpacked_unchanged(things: dict[str, Thing], compression: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        tree = trees.make(Path(scratch) / "tree", things)
        data, result = packed(tree, compression)
        unpacked = trees.unpacked(data, Path(scratch) / "again")
        assert trees.told(Path(scratch) / "again") == trees.told(tree)
        assert packed(Path(scratch) / "again", compression) == (data, result)
        assert unpacked.diff_id == result.diff_id


_UNPACKER = """
import os, sys
from layers import unpack
from layers.attributes import Options
os.mkdir(sys.argv[2])
with open(sys.argv[1], "rb") as tar:
    unpack.unpack(tar, os.open(sys.argv[2], os.O_RDONLY), Options(), open(os.devnull, "wb"))
# Not ru_maxrss: exec(2) hands that of the parent on.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.parametrize("compression", share.of(["none", "gzip", "zstd"]))
def test_a_large_layer_needs_little_memory(scratch: Path, compression: str) -> None:
    things: dict[str, Thing] = {f"many/{n // 100}/{n}": File(b"x" * 500) for n in range(2_000)}
    things["large"] = File(os.urandom(1 << 20) * 120)
    data, _ = packed(trees.make(scratch / "tree", things), compression)
    (scratch / "layer.tar").write_bytes(data)
    env = {**os.environ, "PYTHONPATH": os.fspath(Path(__file__).resolve().parents[2])}
    done = process.run([sys.executable, "-c", _UNPACKER, scratch / "layer.tar", scratch / "out"], env=env)
    assert int(done.stdout) < 100 << 10  # KiB


_FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "mode": st.integers(0, 0o7777),
        "uid": st.sampled_from([0, 1000, 2**21 - 1, 2**40]),
        "gid": st.sampled_from([0, 1000, 2**21 - 1]),
        "size": st.sampled_from([0, 1, 512, 2**33 - 1, 2**40]),
        "mtime": st.sampled_from([0, 1, 2**33 - 1]),
        "type": st.sampled_from([b"0", b"1", b"2", b"3", b"5", b"6", b"7", b"\0", b"L", b"x", b"S"]),
        "linkname": st.text(max_size=30),
    },
)


@given(
    st.one_of(
        st.text(min_size=1, max_size=120), st.from_regex(r"(\./)?([a-z.]{1,40}/){0,4}[a-z.]{1,9}/?", fullmatch=True)
    ),
    _FIELDS,
    st.booleans(),
    st.one_of(st.none(), st.tuples(st.integers(0, 511), st.integers(0, 255))),
)
@example("0", {}, False, (337, 1))
@example("./usr/bin/tool", {"mode": 0o4755, "mtime": 1}, False, None)
@example("usr/share/", {"type": b"5", "size": 512}, True, None)
@example("usr/.wh.x", {}, False, None)
@example("a/.wh.x/b", {}, False, None)
@example("a", {}, False, (136, ord("7")))
@example("a", {}, False, (124, ord("-")))
def test_quick_headers_equal_those_of_tarfile(
    name: str, fields: dict[str, Any], gnu: bool, damage: tuple[int, int] | None
) -> None:
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    try:
        block = bytearray(
            info.tobuf(tarfile.GNU_FORMAT if gnu else tarfile.USTAR_FORMAT, "utf-8", "surrogateescape")[-512:]
        )
    except (ValueError, UnicodeError):
        assume(False)
        raise
    if damage is not None:
        block[damage[0]] = damage[1]
        # A checksum that fits the damage, so that the damage is read.
        block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 8 * 32)
    assert _read(Header, block) == _read(tarfile.TarInfo, block)
    quick = plain_entry(bytes(block))
    if quick is not None:
        info = tarfile.TarInfo.frombuf(bytes(block), "utf-8", "surrogateescape")
        slow = entry_of(info)
        assert slow is not None
        assert quick == slow._replace(mtime_ns=quick.mtime_ns)
        assert quick.mtime_ns == info.mtime * 10**9


def _read(kind: type[tarfile.TarInfo], block: bytearray) -> Any:
    try:
        info = kind.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        return type(error)
    return {
        key: value for key, value in info.get_info().items() if key not in ("uname", "gname", "devmajor", "devminor")
    }


class _Counting:
    """`os`, with its calls counted by name."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        found = getattr(os, name)
        if not callable(found) or isinstance(found, type):
            return found

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.calls[name] += 1
            return found(*args, **kwargs)

        return counted


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_small_file_takes_four_system_calls(scratch: Path, monkeypatch: pytest.MonkeyPatch, umask: int) -> None:
    def calls(count: int) -> Counter[str]:
        source, target = scratch / f"source-{count}", scratch / f"target-{count}"
        trees.make(source, {"d": Dir()} | {f"d/{number}": File(b"data") for number in range(count)})
        data, _ = packed(source)
        counting = _Counting()
        before = os.umask(umask)
        try:
            with monkeypatch.context() as patch:
                for module in (unpack, attributes, safe_open, write_all):
                    patch.setattr(module, "os", counting)
                trees.unpacked(data, target)
        finally:
            os.umask(before)
        assert trees.told(target) == trees.told(source)
        return counting.calls

    each = calls(150)
    each.subtract(calls(50))
    chmods = {} if umask == 0o022 else {"fchmod": 100}  # tar needs that one and fchown(2), whatever the umask is
    assert +each == {"open": 100, "write": 100, "utime": 100, "close": 100, **chmods}


def test_nothing_is_inherited_from_where_layers_are_kept(scratch: Path) -> None:
    source, place = scratch / "source", scratch / "place"
    trees.make(source, {"d": Dir(), "d/f": File(b"data"), "f": File(b"data", mode=0o640)})
    place.mkdir()
    process.run(["setfacl", "-d", "-m", "u:7:rwx,m::rwx", place])
    os.chown(place, 0, 8)
    place.chmod(0o2755)
    target = place / "target"
    trees.unpacked(packed(source)[0], target)
    assert trees.told(target) == trees.told(source)
