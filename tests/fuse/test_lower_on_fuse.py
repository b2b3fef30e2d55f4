"""A lower that is on FUSE itself: the union sends its daemon few requests, and other requests do not wait for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.core.trees import tree
from tests.core.union_driver import UnionDriver
from tests.fuse.daemons import Daemon, daemon_of
from tests.support import mounts
from tests.support.timing import limit
from tests.support.users import User
from unionfs.core.options import Options
from unionfs.core.union import Union

pytestmark = pytest.mark.usefixtures("kept_caches")

_NAMES = 100


@pytest.fixture
def stacked(scratch: Path, root_user: User, fuse_device: Path) -> Iterator[tuple[Path, Daemon]]:
    """The mountpoint of a union, whose lower is the mountpoint of another one; and the daemon of that one."""
    del fuse_device
    tree(scratch / "files", " ".join(f"d/f{number}=content" for number in range(_NAMES)))
    (scratch / "files/d/big").write_bytes(b"big" + bytes(2 << 20) + b"end")
    for name in ("first", "second", "upper", "work"):
        (scratch / name).mkdir()
    first, second = scratch / "first", scratch / "second"
    root_user.run(mounts.mount_argv([scratch / "files"], first, user=root_user, transport="kernel"))
    with daemon_of(first) as daemon:
        upper, work = scratch / "upper", scratch / "work"
        argv = mounts.mount_argv([first], second, user=root_user, transport="kernel", upper=upper, work=work)
        root_user.run(argv)
        with daemon_of(second):
            yield second, daemon


def test_a_listing_asks_for_no_attributes(root_user: User, stacked: tuple[Path, Daemon]) -> None:
    second, _ = stacked
    listed = root_user.run(["ls", "-f", os.fspath(second / "d")]).stdout.split()
    assert sorted(listed) == sorted([".", "..", "big", *(f"f{number}" for number in range(_NAMES))])
    messages = json.loads(root_user.unionfs("stats", "--json", second).stdout)["messages"]
    assert (messages["LOOKUP"], messages["READDIR"], "READDIRPLUS" in messages) == (1, 2, False)
    long = root_user.run(["stat", "-c", "%s", *(os.fspath(second / f"d/f{number}") for number in range(_NAMES))])
    assert long.stdout.split() == ["7"] * _NAMES


def test_a_read_that_waits_delays_no_other_request(root_user: User, stacked: tuple[Path, Daemon]) -> None:
    second, daemon = stacked
    assert root_user.run(["sh", "-c", "head -c 3 d/big && echo a > new"], cwd=second).stdout == "big"
    daemon.kill(signal.SIGSTOP)
    with subprocess.Popen(["tail", "-c", "3", second / "d/big"], stdout=subprocess.PIPE) as reader:
        try:
            root_user.run(["sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do echo a >> new; done"], cwd=second)
            assert reader.poll() is None
        finally:
            daemon.kill(signal.SIGCONT)
        assert reader.communicate(timeout=limit(30))[0] == b"end"
    assert (second / "new").read_text() == "a\n" * 10


@pytest.mark.parametrize(("has_xattrs", "asked"), [(True, (14, 5)), (False, (0, 0))])
def test_files_without_extended_attributes_are_asked_for_none(
    root_user: User, scratch: Path, fuse_device: Path, has_xattrs: bool, asked: tuple[int, int]
) -> None:
    """The messages that the lower's daemon gets, exactly, for a directory and two files, one of which is copied up."""
    del fuse_device
    lower = scratch / "lower"
    for place in (lower, scratch / "upper", scratch / "work"):
        place.mkdir()
    root_user.run(
        mounts.mount_argv([tree(scratch / "files", "d/a=1 d/b=2")], lower, user=root_user, transport="kernel")
    )
    with daemon_of(lower):
        upper, work = os.fspath(scratch / "upper"), os.fspath(scratch / "work")
        without = () if has_xattrs else (os.fspath(lower),)
        with closing(Union(Options((os.fspath(lower),), upper, work, without_xattrs=without))) as union:
            seen = UnionDriver(union)
            assert (seen.read("d/a"), seen.listxattr("d"), seen.listxattr("d/b")) == (b"1", [], [])
            with pytest.raises(OSError, match="No data available"):
                seen.getxattr("d/b", b"security.capability")
            seen.chmod("d/b", 0o600)
            seen.setxattr("d/b", b"user.x", b"y", 0)
            assert (seen.listxattr("d/b"), seen.getxattr("d/b", b"user.x")) == ([b"user.x"], b"y")
        messages = json.loads(root_user.unionfs("stats", "--json", lower).stdout)["messages"]
    assert (messages.get("LISTXATTR", 0), messages.get("GETXATTR", 0)) == asked
