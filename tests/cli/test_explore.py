"""`layers explore` of a mounted union: its branches are the layers, for root and for an ordinary user."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.mounts import mounted
from tests.support.users import User

_EXPLORE = "import sys; from unionfs.cli.layers import main; sys.exit(main())"


def test_a_mounted_union_is_a_stack_of_its_branches(user: User, scratch: Path, fuse_device: Path) -> None:
    del fuse_device
    for name, content in (("one/shared", b"1"), ("two/shared", b"22"), ("two/gone", b"333")):
        (scratch / name).parent.mkdir(exist_ok=True)
        (scratch / name).write_bytes(content)
    for name in ("upper", "mnt"):
        (scratch / name).mkdir()
    user.own(scratch)
    lowers = [scratch / "one", scratch / "two"]
    with mounted(lowers, scratch / "mnt", user=user, transport="kernel", upper=scratch / "upper") as mnt:
        user.run(["rm", mnt / "gone"])
        for word in (str(mnt), f"union:{mnt}"):
            said = user.run([sys.executable, "-c", _EXPLORE, "explore", word], check=True).stdout
            heads = [line.partition(": ")[2] for line in said.splitlines() if line.startswith("layer ")]
            assert heads == [str(scratch / "upper"), str(scratch / "one"), str(scratch / "two")]
            assert "1 B in 1 files show" in said
            assert "wasted, replaced: 2 B in 1 files" in said
            assert "wasted, removed later: 3 B in 1 files" in said
    done = user.run([sys.executable, "-c", _EXPLORE, "explore", f"union:{scratch}/mnt"], check=False)
    assert done.returncode != 0
    assert "no union is mounted there" in done.stderr
