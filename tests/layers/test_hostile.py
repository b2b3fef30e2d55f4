"""Tars from strangers: refused with the reason, nothing written outside of the layer, and what is allowed comes out."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from layers import fingerprint
from layers.attributes import Options
from layers.digest import Digest
from layers.errors import LayerError, Refused
from layers.limits import Limits
from layers.store import Store
from layers.tree import LayerTrees
from layers.unpacked import Pending, verify
from tests.layers import images, trees

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="as root a mistake would have the worst consequences")

Member = tuple[str, dict[str, Any], bytes]


def symlink(name: str, target: str) -> Member:
    return name, {"type": tarfile.SYMTYPE, "linkname": target}, b""


def hardlink(name: str, target: str) -> Member:
    return name, {"type": tarfile.LNKTYPE, "linkname": target}, b""


def directory(name: str, **fields: Any) -> Member:
    return name, {"type": tarfile.DIRTYPE, "mode": 0o755} | fields, b""


def file(name: str, data: bytes = b"", **fields: Any) -> Member:
    return name, fields, data


REFUSED: list[tuple[str, list[Member], str]] = [
    ("dot-dot", [file("../outside")], r"'\.\.'"),
    ("dot-dot inside", [file("a/../../outside")], r"'\.\.'"),
    ("no name", [file("")], "without a name|damaged"),
    ("long name", [file("x" * 256)], "255"),
    ("long path", [file("/".join(["d" * 200] * 25))], "4095"),
    ("file as root", [file(".")], "root of a layer is a directory"),
    ("symlink as root", [symlink("./", "/etc")], "root of a layer is a directory"),
    ("below a file", [file("a"), file("a/b")], "below a file"),
    ("symlinks in a circle", [symlink("a", "b"), symlink("b", "a"), file("a/outside")], "more than 40 symbolic links"),
    ("below a symlink to a whiteout", [symlink("a", ".wh.b"), file("a/outside")], "link to a whiteout"),
    ("below a symlink to a long name", [symlink("a", "x" * 300), file("a/outside")], "too long"),
    ("hard link to itself by a symlink", [file("d/f"), symlink("s", "d"), hardlink("d/f", "s/f")], "itself"),
    ("hard link to nothing outside", [symlink("s", "../../etc"), hardlink("a", "s/passwd")], "does not exist"),
    ("hard link to nothing absolute", [hardlink("a", "/etc/passwd")], "does not exist"),
    ("symlink to nothing", [symlink("a", "")], "to nothing"),
    ("long symlink", [symlink("a", "x" * 5000)], "5000"),
    ("hard link outside", [hardlink("a", "../../etc/passwd")], r"'\.\.'"),
    ("hard link to itself", [file("a"), hardlink("a", "a")], "itself"),
    ("hard link to a directory", [directory("d"), hardlink("a", "d")], "to a directory"),
    ("hard link to the root", [hardlink("a", ".")], "to the root"),
    ("hard link to nothing", [hardlink("a", "nowhere")], "does not exist"),
    ("hard link to what is below", [file("a/b"), hardlink("a", "a/b")], "a path below itself"),
    ("hard link to a whiteout", [file(".wh.x"), hardlink("a", ".wh.x")], "to a whiteout"),
    ("whiteout of nothing", [file(".wh.")], "of nothing"),
    ("whiteout of itself", [file("a/.wh..")], "directory it is in"),
    ("whiteout of the root", [file(".wh..")], "directory it is in"),
    ("whiteout of outside", [file(".wh...")], "outside"),
    ("whiteout of outside, deeper", [file("a/.wh...")], "outside"),
    ("below a whiteout", [file(".wh.a/b")], "below a whiteout"),
    ("overlayfs whiteout", [("a", {"type": tarfile.CHRTYPE}, b"")], "overlayfs"),
    ("device number", [("a", {"type": tarfile.BLKTYPE, "devmajor": 4096}, b"")], "device number"),
    ("unknown type", [("a", {"type": b"Z"}, b"")], "unknown type"),
]


@pytest.mark.parametrize(("members", "why"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
@pytest.mark.parametrize("format_", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
def test_what_is_dangerous_is_refused(scratch: Path, members: list[Member], why: str, format_: int) -> None:
    sentinel = scratch / "outside"
    layer = scratch / "deep" / "layer"
    before = sorted(os.listdir("/etc"))
    with pytest.raises(Refused, match=why):
        trees.unpacked(trees.tar_of(members, format_), layer)
    assert not sentinel.exists()
    assert os.listdir(scratch) == ["deep"]
    assert os.listdir(scratch / "deep") == ["layer"]
    assert sorted(os.listdir("/etc")) == before


@pytest.mark.parametrize("members", [case[1] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_a_refused_layer_leaves_nothing_in_a_store(scratch: Path, members: list[Member]) -> None:
    store = Store(str(scratch / "root"))
    tar = trees.tar_of([file("first", b"x"), *members])
    with store.adding():
        pending = Pending(store, Options())
        with pytest.raises(Refused):
            _run_and_place(pending, tar)
    assert os.listdir(store.aside) == os.listdir(store.layers) == []


def _run_and_place(pending: Pending, tar: bytes) -> None:
    diff_id = Digest(images.digest(tar))
    pending.run(io.BytesIO(tar), diff_id)
    with LayerTrees() as branches:
        pending.place(diff_id, [], branches)


TAKEN: list[tuple[str, list[Member], list[str]]] = [
    ("absolute", [file("/opt/x")], ["opt", "opt/x"]),
    ("absolute root", [directory("/"), file("a")], ["a"]),
    ("root without a name", [directory(""), file("a")], ["a"]),
    ("absolute hard link", [file("/a"), hardlink("/b", "/a")], ["a", "b"]),
    ("dot-dot that stays", [file("a/../b")], ["b"]),
    ("below an absolute symlink", [symlink("v/r", "/run"), file("v/r/x")], ["run", "run/x", "v", "v/r"]),
    ("directory below", [symlink("v/r", "../run"), directory("v/r/d"), file("run/d/x")],
     ["run", "run/d", "run/d/x", "v", "v/r"]),
    ("hard link below", [file("f"), symlink("s", "/run"), hardlink("s/l", "f")], ["f", "run", "run/l", "s"]),
    ("hard link through", [file("run/f"), symlink("s", "run"), hardlink("l", "s/f")], ["l", "run", "run/f", "s"]),
    ("symlink below", [symlink("s", "/run"), symlink("s/t", "x")], ["run", "run/t", "s"]),
    ("whiteout below", [symlink("s", "/run"), file("s/.wh.x")], ["run", "run/.wh.x", "s"]),
    ("opaque below", [symlink("s", "/run"), file("s/.wh..wh..opq")], ["run", "run/.wh..wh..opq", "s"]),
    ("symlink that climbs", [symlink("a/s", "../../../etc/a"), file("a/s/x")], ["a", "a/s", "etc", "etc/a", "etc/a/x"]),
    ("chain of symlinks", [symlink("a", "b"), symlink("b", "c"), file("a/x")], ["a", "b", "c", "c/x"]),
    ("second name of a symlink", [symlink("s", "d"), hardlink("t", "s"), file("t/x")], ["d", "d/x", "s", "t"]),
    ("directory instead of a symlink", [symlink("s", "/run"), directory("s"), file("s/x")], ["s", "s/x"]),
    ("file below what was a symlink", [symlink("s", "d"), file("s"), directory("s"), file("s/x")], ["s", "s/x"]),
    ("whiteout that is a directory", [directory(".wh.a")], [".wh.a"]),
    ("whiteout that is a symlink", [symlink(".wh.a", "/etc")], [".wh.a"]),
]  # fmt: skip
"""Unusual tars, and what umoci makes of them, but for the marks."""


@pytest.mark.parametrize(("members", "wanted"), [case[1:] for case in TAKEN], ids=[case[0] for case in TAKEN])
@pytest.mark.parametrize("owners", ["mapped", "noted"])
def test_the_root_of_the_layer_is_the_root_of_all_names(
    scratch: Path, members: list[Member], wanted: list[str], owners: str
) -> None:
    trees.unpacked(trees.tar_of(members), scratch / "layer", owners=owners)
    assert trees.names(scratch / "layer") == wanted
    for path in (scratch / "layer").rglob(".wh.*"):
        assert stat.S_ISREG(path.lstat().st_mode)
        assert path.stat().st_size == 0


def test_entries_below_a_symlink_are_placed_at_its_target(scratch: Path) -> None:
    members = [file("run/x", b"1", mode=0o600), symlink("s", "/run"), file("s/x", b"2"), file("s/.wh.gone")]
    trees.unpacked(trees.tar_of(members), scratch / "layer")
    assert trees.names(scratch / "layer") == ["run", "run/.wh.gone", "run/x", "s"]
    assert (scratch / "layer/run/x").read_bytes() == b"2"
    assert os.readlink(scratch / "layer/s") == "/run"


def raw(uid: bytes | None = None, data: bytes = b"x", kind: bytes = b"0", pax: dict[str, str] | None = None) -> bytes:
    """An entry `f` of uid 7, without the end of the tar. `uid` replaces the field's eight bytes."""
    info = tarfile.TarInfo("f")
    info.uid, info.size, info.type, info.pax_headers = 7, len(data), kind, pax or {}
    header = bytearray(info.tobuf(tarfile.PAX_FORMAT))
    if uid is not None:
        header[-512 + 108 : -512 + 116] = uid
        header[-512 + 148 : -512 + 156] = b" " * 8
        header[-512 + 148 : -512 + 156] = b"%06o\0 " % sum(header[-512:])
    return bytes(header) + data + bytes(-len(data) % 512)


def base256(number: int) -> bytes:
    return tarfile.itn(number, 8, tarfile.GNU_FORMAT)  # type: ignore[attr-defined, no-any-return]


OWNERS: list[tuple[bytes, int]] = [
    (raw(base256(2**32)), 0),  # as chown(2) takes it, so umoci and podman
    (raw(base256(2**32 + 5)), 5),
    (raw(base256(-1)), 0),
    (raw(base256(-2)), 2**32 - 2),
    (raw(base256(2**32 - 1)), 0),
    (raw(b"\x001750 \0\0"), 1000),
    (raw(b"\0\0\0\0\0\0\0\0"), 0),
    (raw(b"\x001750 \0\0", b"", tarfile.FIFOTYPE), 1000),
    (raw(pax={"uid": ""}), 7),
    (raw(pax={"uid": "-2"}), 2**32 - 2),
    (raw(pax={"uid": str(2**32 + 5)}), 5),
]


@pytest.mark.parametrize(("tar", "wanted"), OWNERS)
def test_owners_are_read_as_other_programs_read_them(scratch: Path, tar: bytes, wanted: int) -> None:
    trees.unpacked(tar + bytes(1024), scratch / "layer")
    assert (scratch / "layer/f").stat().st_uid == wanted


@pytest.mark.parametrize("pax", [{"uid": "abc"}, {"gid": "1e3"}, {"size": "x"}, {"uid": "1" * 30}])
def test_a_malformed_number_is_refused(scratch: Path, pax: dict[str, str]) -> None:
    with pytest.raises(Refused, match="not a number"):
        trees.unpacked(raw(pax=pax), scratch / "layer")


def test_ends_of_tars_that_other_programs_accept(scratch: Path) -> None:
    extended = raw(data=b"", pax={"mtime": "1.5"})[:1024]
    for number, (tar, wanted) in enumerate(
        [
            (raw()[:513], ["f"]),
            (raw(data=b"x" * 700)[: 512 + 700], ["f"]),
            (raw(), ["f"]),
            (raw() + bytes(100), ["f"]),
            (raw() + bytes(612), ["f"]),
            (extended, []),
            (extended[:1000], []),
            (extended + bytes(1024), []),
            (raw() + extended, ["f"]),
        ]
    ):
        assert trees.unpacked(tar, scratch / str(number)).tar_size == len(tar)
        assert trees.names(scratch / str(number)) == wanted
    for number, tar in enumerate([raw()[:512], raw(data=b"x" * 700)[: 512 + 699], raw() + b"abc", extended[:520]]):
        with pytest.raises(Refused):
            trees.unpacked(tar, scratch / f"bad-{number}")


def names_of(scratch: Path, members: list[Member], name: str = "layer") -> Sequence[str]:
    trees.unpacked(trees.tar_of(members), scratch / name)
    return trees.names(scratch / name)


def test_whiteouts_become_marks(scratch: Path) -> None:
    assert names_of(scratch, [file(".wh.a"), file("d/.wh.b"), file("e/.wh..wh..opq")]) == [
        ".wh.a", "d", "d/.wh.b", "e", "e/.wh..wh..opq",
    ]  # fmt: skip


def test_a_whiteout_hides_lower_layers_and_no_entry_of_its_own_layer(scratch: Path) -> None:
    for order, members in enumerate(([file(".wh.a"), file("a")], [file("a"), file(".wh.a")])):
        assert names_of(scratch, members, f"file{order}") == ["a"]
    for order, members in enumerate(([file(".wh.d"), file("d/f")], [file("d/f"), file(".wh.d")])):
        assert names_of(scratch, members, f"dir{order}") == ["d", "d/.wh..wh..opq", "d/f"]


def test_an_opaque_root_hides_everything(scratch: Path) -> None:
    assert names_of(scratch, [file(".wh..wh..opq"), file("a")]) == [".wh..wh..opq", "a"]


def test_aufs_bookkeeping_is_passed_over(scratch: Path) -> None:
    members = [directory(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", b"x"), file(".wh..wh.aufs"), file("a")]
    assert names_of(scratch, members) == ["a"]


def test_the_later_of_two_entries_counts(scratch: Path) -> None:
    members = [
        file("a", b"1"), file("a", b"2"),
        directory("d", mode=0o700), file("d/f"), directory("d", mode=0o711),
        directory("e"), file("e/f"), file("e", b"now a file"),
        file("g", b""), directory("g"), file("g/h"),
        symlink("s", "/etc"), directory("s"), file("s/inside"),
    ]  # fmt: skip
    assert names_of(scratch, members) == ["a", "d", "d/f", "e", "g", "g/h", "s", "s/inside"]
    assert (scratch / "layer/a").read_bytes() == b"2"
    assert (scratch / "layer/e").read_bytes() == b"now a file"
    assert stat.S_IMODE((scratch / "layer/d").stat().st_mode) == 0o711
    assert not Path("/etc/inside").exists()


def test_set_id_bits_come_with_their_owner_only(scratch: Path) -> None:
    members = [file("suid", b"#!", mode=0o4755, uid=1234), file("sgid", b"#!", mode=0o2755, gid=77)]
    trees.unpacked(trees.tar_of(members), scratch / "layer")
    told = trees.told(scratch / "layer")
    assert told[b"suid"][1:4] == (0o4755, 1234, 0)
    assert told[b"sgid"][1:4] == (0o2755, 0, 77)


def test_marks_and_labels_of_other_programs_are_dropped(scratch: Path) -> None:
    names = ["trusted.overlay.redirect", "user.overlay.metacopy", "user.unionfs.origin", "security.ima", "user.fine"]
    pax = {f"SCHILY.xattr.{name}": "/etc" for name in names}
    result = trees.unpacked(trees.tar_of([file("a", b"x", pax_headers=pax)]), scratch / "layer")
    assert os.listxattr(scratch / "layer/a") == ["user.fine"]
    assert result.dropped_xattrs == set(names) - {"user.fine"}


@pytest.mark.parametrize("pack", [gzip.compress, lambda data: zstandard.ZstdCompressor().compress(data)])
def test_a_bomb_is_refused_before_it_fills_the_disk(scratch: Path, pack: Any) -> None:
    bomb = pack(trees.tar_of([file("zeros", bytes(64 << 20))]))
    limits = Limits(ratio_from=8 << 20)
    with pytest.raises(Refused, match="bomb"):
        trees.unpacked(bomb, scratch / "layer", limits)
    assert sum(path.stat().st_blocks for path in (scratch / "layer").iterdir()) * 512 < 32 << 20
    with pytest.raises(Refused, match="larger than 1000000 bytes"):
        trees.unpacked(bomb, scratch / "second", Limits(max_bytes=1_000_000, max_ratio=None))


def test_entries_and_headers_are_bounded(scratch: Path) -> None:
    many = trees.tar_of([file(f"f{number}") for number in range(50)])
    with pytest.raises(Refused, match="more than 40 entries"):
        trees.unpacked(many, scratch / "many", Limits(max_entries=40))
    long = trees.tar_of([file("a", pax_headers={"comment": "x" * (2 << 20)})])
    with pytest.raises(Refused, match="a header of"):
        trees.unpacked(long, scratch / "long")
    chained = b"".join(tarfile.TarInfo("././@LongLink").tobuf()[:156] + b"L" + bytes(355) for _ in range(3))
    with pytest.raises(Refused):
        trees.unpacked(chained * 2000, scratch / "chained")


def sparse(**changes: str) -> Member:
    """A file of holes, as GNU tar writes them in pax headers (version 1.0)."""
    headers = {f"GNU.sparse.{key}": text for key, text in {"major": "1", "minor": "0", "name": "holes"}.items()}
    headers |= {f"GNU.sparse.{key}": text for key, text in changes.items()}
    return file("GNUSparseFile.0/holes", b"1\n0\n1\n".ljust(512, b"\0") + b"x", pax_headers=headers)


@pytest.mark.parametrize("size", [b"-0000000005\0", b"-0000001000\0"])
def test_a_negative_size_in_a_plain_header(scratch: Path, size: bytes) -> None:
    block = bytearray(trees.tar_of([file("a", b"x" * 600)]))
    block[124:136] = size
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:512]) + 8 * 32)
    with pytest.raises(Refused, match="size"):
        trees.unpacked(bytes(block), scratch / "layer")


def test_holes_are_bounded_too(scratch: Path) -> None:
    for number, size in enumerate((str(2**62), str(65 << 30))):
        with pytest.raises(Refused, match="holes included"):
            trees.unpacked(trees.tar_of([sparse(realsize=size)]), scratch / str(number))
    half = [sparse(realsize=str(600_000)), sparse(realsize=str(600_000), name="more")]
    with pytest.raises(Refused, match="holes included"):
        trees.unpacked(trees.tar_of(half), scratch / "together", Limits(max_bytes=1_000_000))
    with pytest.raises(Refused, match="-5"):
        trees.unpacked(trees.tar_of([sparse(realsize="-5")]), scratch / "negative")
    with pytest.raises(Refused, match=r"'\.\.'"):
        trees.unpacked(trees.tar_of([sparse(realsize="600", name="../outside")]), scratch / "outside")


def test_headers_of_a_gigabyte_are_not_read(scratch: Path) -> None:
    info = tarfile.TarInfo("pax")
    for number, kind in enumerate((tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME)):
        info.type, info.size = kind, 1 << 30
        with pytest.raises(Refused, match="a header of 1073741824 bytes"):
            trees.unpacked(info.tobuf() + bytes(1024), scratch / str(number))


def test_global_headers_do_not_add_up(scratch: Path) -> None:
    said = b"500000 comment=" + b"x" * (500_000 - 16) + b"\n"
    info = tarfile.TarInfo("global")
    info.type, info.size = tarfile.XGLTYPE, len(said)
    header = info.tobuf() + said + bytes(-len(said) % 512)
    trees.unpacked(header + trees.tar_of([file("a")]), scratch / "one")
    with pytest.raises(Refused, match="global headers of more than"):
        trees.unpacked(header * 3 + trees.tar_of([file("a")]), scratch / "three")


def test_compressed_data_with_something_behind_it(scratch: Path) -> None:
    tar = trees.tar_of([file("a", b"x")])
    frame = zstandard.ZstdCompressor().compress
    for number, whole in enumerate(
        (
            gzip.compress(tar) + bytes(5000),
            gzip.compress(tar[:512]) + gzip.compress(b"") * 100 + gzip.compress(tar[512:]),
            frame(tar[:512]) + b"\x50\x2a\x4d\x18\4\0\0\0abcd" + frame(tar[512:]),
        )
    ):
        trees.unpacked(whole, scratch / str(number))
        assert (scratch / str(number) / "a").read_bytes() == b"x"
    for number, damaged in enumerate(
        (gzip.compress(tar) + b"garbage", gzip.compress(tar)[:-6] + b"abcdef", frame(tar) + b"garbage!")
    ):
        with pytest.raises(Refused, match="damaged"):
            trees.unpacked(damaged, scratch / f"bad-{number}")


def test_a_zstd_window_larger_than_memory_is_refused(scratch: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=30)
    work = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    with pytest.raises(Refused, match="too much memory"):
        trees.unpacked(work.compress(trees.tar_of([file("a")])) + work.flush(), scratch / "layer")


def test_a_file_of_many_names_is_read_once_more_only(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    whole = fingerprint.content_of

    def counted(path_fd: int) -> str:
        reads.append(path_fd)
        return whole(path_fd)

    monkeypatch.setattr(fingerprint, "content_of", counted)
    store = Store(str(scratch / "root"))
    tar = trees.tar_of([file("a", b"x" * 1000), *(hardlink(f"l{number}", "a") for number in range(50))])
    with store.adding():
        pending = Pending(store, Options())
        _run_and_place(pending, tar)
    assert len(reads) == 1
    assert verify(store, os.listdir(store.layers)[0]) == []


def test_a_negative_size_does_not_go_back(scratch: Path) -> None:
    tar = trees.tar_of([file("a", b"x", pax_headers={"size": "-512"}), file("b")])
    with pytest.raises(Refused, match="size"):
        trees.unpacked(tar, scratch / "layer")


@pytest.mark.parametrize("compress", [bytes, gzip.compress, lambda data: zstandard.ZstdCompressor().compress(data)])
def test_an_archive_that_is_cut_off_is_refused(scratch: Path, compress: Any) -> None:
    whole = compress(trees.tar_of([file("a", os.urandom(200_000)), file("b", os.urandom(1000))]))
    for number, end in enumerate((100, len(whole) // 3, len(whole) // 2)):
        with pytest.raises(Refused):
            trees.unpacked(whole[:end], scratch / str(number))


def test_nothing_at_all_is_an_empty_layer(scratch: Path) -> None:
    assert names_of(scratch, []) == []
    trees.unpacked(bytes(1024), scratch / "zeros")
    assert trees.names(scratch / "zeros") == []


def test_what_is_no_tar_is_refused(scratch: Path) -> None:
    for number, data in enumerate(
        (b"hello world" * 100, os.urandom(5000), b"\x1f\x8bnonsense", b"\x28\xb5\x2f\xfd123456")
    ):
        with pytest.raises(Refused):
            trees.unpacked(data, scratch / str(number))


_GOOD = trees.tar_of(
    [
        directory("d"),
        file("d/a", b"x" * 700, pax_headers={"SCHILY.xattr.user.a": "1"}),
        symlink("s", "d"),
        file(".wh.q"),
    ]
)


@settings(max_examples=150)
@given(st.lists(st.tuples(st.integers(0, len(_GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_damaged_tar_is_refused_or_stays_inside(changes: list[tuple[int, int]]) -> None:
    data = bytearray(_GOOD)
    for at, value in changes:
        data[at] = value
    with tempfile.TemporaryDirectory() as scratch:
        outside = Path(scratch) / "outside"
        outside.mkdir()
        try:
            trees.unpacked(bytes(data), Path(scratch) / "a" / "layer")
        except (LayerError, OSError):
            pass
        assert os.listdir(outside) == []
        assert sorted(os.listdir(scratch)) == ["a", "outside"]
        assert os.listdir(Path(scratch) / "a") == ["layer"]


_PATHS = st.lists(st.sampled_from(["a", "b", "s", "t", "..", "", ".wh.a", ".wh..wh..opq"]), min_size=1, max_size=4)
_MIXED = st.lists(
    st.tuples(st.sampled_from("fdslw"), _PATHS.map("/".join), st.sampled_from(["", "/", "../"]), _PATHS.map("/".join)),
    min_size=2,
    max_size=12,
)


@settings(max_examples=100)
@given(_MIXED, st.sampled_from(["mapped", "noted"]))
def test_any_mix_is_refused_or_stays_inside(mixed: list[tuple[str, str, str, str]], owners: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        outside = Path(scratch) / "outside"
        outside.mkdir()
        (outside / "a").write_bytes(b"kept")
        members: list[Member] = [symlink("s", "../../outside"), symlink("t", str(outside)), file("a/b", b"1")]
        for kind, name, start, target in mixed:
            made = {
                "f": file(start + name, b"2"),
                "d": directory(start + name),
                "s": symlink(name, start + target),
                "l": hardlink(name, start + target),
                "w": file(f"{name}/.wh.b"),
            }
            members.append(made[kind])
        with suppress(Refused):
            trees.unpacked(trees.tar_of(members), Path(scratch) / "a" / "layer", owners=owners)
        assert {path.name: path.read_bytes() for path in outside.iterdir()} == {"a": b"kept"}
        assert (outside / "a").stat().st_nlink == 1
        assert sorted(os.listdir(scratch)) == ["a", "outside"]
        assert os.listdir(Path(scratch) / "a") == ["layer"]
