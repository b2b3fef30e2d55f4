"""Id maps: the ranges of a user, the maps made of them, and what is written without helpers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from unionfs.id_ranges import IdRange
from unionfs.launcher import idmap, userns
from unionfs.launcher.errors import LaunchError
from unionfs.launcher.idmap import NamespaceMap, SubordinateRange, extents, parse_ranges

SUBUID = """\
alice:100000:65536
# bob:1:1
bob:165536:65536
bob : 5:5
1000:300000:10
alice:x:5
alice:400000
alice:500000:0
alice:-1:5
alice:600000:7:9

alice:700000:20"""


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("alice",), ((100000, 65536), (700000, 20))),
        (("bob",), ((165536, 65536),)),
        (("1000",), ((300000, 10),)),
        (("alice", "1000"), ((100000, 65536), (300000, 10), (700000, 20))),
        (("nobody",), ()),
        ((), ()),
    ],
)
def test_ranges_of_a_user(names: tuple[str, ...], expected: tuple[tuple[int, int], ...]) -> None:
    assert parse_ranges(SUBUID, names) == expected


@pytest.mark.parametrize(
    ("own", "ranges", "expected"),
    [
        (1000, (), [(0, 1000, 1)]),
        (1000, ((100000, 65536),), [(0, 1000, 1), (1, 100000, 65536)]),
        (1000, ((100000, 10), (200000, 5)), [(0, 1000, 1), (1, 100000, 10), (11, 200000, 5)]),
        # The same range twice, as `useradd` and a careful administrator together leave it.
        (1000, ((100000, 10), (100000, 10)), [(0, 1000, 1), (1, 100000, 10)]),
        (1000, ((100000, 10), (100005, 10)), [(0, 1000, 1), (1, 100000, 10), (11, 100010, 5)]),
        # The user's own id within its range: it is root inside already.
        (5, ((1, 10),), [(0, 5, 1), (1, 1, 4), (5, 6, 5)]),
        (0, ((0, 3),), [(0, 0, 1), (1, 1, 2)]),
        # (uid_t) -1 is no id.
        (1000, ((2**32 - 3, 10),), [(0, 1000, 1), (1, 2**32 - 3, 2)]),
    ],
)
def test_map_of_ranges(own: int, ranges: tuple[tuple[int, int], ...], expected: list[tuple[int, int, int]]) -> None:
    assert list(extents(own, [SubordinateRange(*given) for given in ranges])) == expected


def test_the_kernel_takes_so_many_lines_and_no_more() -> None:
    found = extents(1000, [SubordinateRange(100000 + 10 * number, 5) for number in range(500)])
    assert len(found) == 340


def test_what_a_map_has() -> None:
    id_map = NamespaceMap((IdRange(0, 1000, 1), IdRange(1, 100000, 10)), (IdRange(0, 100, 1),))
    assert [uid for uid in range(-1, 20) if id_map.has_uid(uid)] == list(range(11))
    assert [gid for gid in range(-1, 20) if id_map.has_gid(gid)] == [0]


def test_no_ranges_give_a_single_id_and_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some, none = tmp_path / "some", tmp_path / "none"
    some.write_text("4242:100000:65536\n")
    none.write_text("somebody:100000:65536\n")
    monkeypatch.setattr(idmap, "SUBUID", str(some))
    monkeypatch.setattr(idmap, "SUBGID", str(none))
    assert idmap.find(4242, 4243) == idmap.single(4242, 4243, f"{none} gives this user no ids")
    monkeypatch.setattr(idmap, "SUBUID", str(tmp_path / "missing"))
    assert idmap.find(4242, 4243).limited == f"{tmp_path / 'missing'} gives this user no ids"


def test_no_helpers_give_a_single_id_and_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranges = tmp_path / "ranges"
    ranges.write_text("4242:100000:65536\n")
    monkeypatch.setattr(idmap, "SUBUID", str(ranges))
    monkeypatch.setattr(idmap, "SUBGID", str(ranges))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert idmap.find(4242, 4242).limited == "newuidmap is not installed"
    helper = tmp_path / "newuidmap"
    helper.write_text("#!/bin/sh\n")
    helper.chmod(0o755)
    assert idmap.find(4242, 4242).limited == f"{helper} is neither set-user-id root nor given capabilities"
    helper.chmod(0o4755)
    (tmp_path / "newgidmap").symlink_to(helper)
    assert idmap.find(4242, 4242) == NamespaceMap(
        (IdRange(0, 4242, 1), IdRange(1, 100000, 65536)), (IdRange(0, 4242, 1), IdRange(1, 100000, 65536))
    )


def test_a_single_id_needs_no_helper() -> None:
    id_map = idmap.single(os.geteuid(), os.getegid(), "a test")
    told = userns.call(
        id_map, lambda: Path("/proc/self/uid_map").read_bytes() + Path("/proc/self/gid_map").read_bytes()
    )
    assert told.split() == [b"0", b"%d" % os.geteuid(), b"1", b"0", b"%d" % os.getegid(), b"1"]


def test_a_helper_that_refuses_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, script in (("newuidmap", "echo newuidmap: not you >&2; exit 1"), ("newgidmap", "exit 0")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    id_map = NamespaceMap((IdRange(0, os.geteuid(), 1),), (IdRange(0, os.getegid(), 1),))
    with pytest.raises(LaunchError, match="newuidmap: not you"):
        userns.call(id_map, lambda: b"")
