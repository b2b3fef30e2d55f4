"""`unionfs diff`, `ps` and `rm` of containers that `unionfs run` made."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.core.trees import tree
from tests.support.marks import as_ordinary_user
from tests.support.timing import limit
from tests.support.users import User

pytestmark = pytest.mark.usefixtures("fuse_device")

TIMEOUT_S = 120


@pytest.fixture
def rootfs(user: User, scratch: Path) -> list[Path]:
    """Two directories on top of this machine's own, which has a shell."""
    bottom = tree(scratch / "bottom", "box/etc/motd=hello box/etc/other=1 box/d/e/f=1 box/d/g=2")
    top = tree(scratch / "top", "box/etc/.wh.other box/top=1")
    user.own(bottom, top)
    return [top, bottom, Path("/")]


def unionfs(user: User, *args: str | Path) -> subprocess.CompletedProcess[str]:
    return user.run([*user.unionfs_cmd, *args], timeout_s=TIMEOUT_S, check=False)


def run(user: User, rootfs: list[Path], script: str, *flags: str) -> subprocess.CompletedProcess[str]:
    lowers = [word for lower in rootfs for word in ("--lower", str(lower))]
    done = unionfs(user, "run", "--name", "box", *flags, *lowers, "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    return done


def own(lines: list[str]) -> list[str]:
    """What is below /box: elsewhere the launcher may have made places to mount at."""
    return [line.replace("/box/", "/") for line in lines if line[2:].startswith("/box/")]


def test_what_a_container_changed(user: User, rootfs: list[Path]) -> None:
    run(user, rootfs, "cd /box; rm etc/motd top; mkdir new; touch new/a etc/other; echo x > d/g; mv d/e d/h")
    try:
        lines = own(unionfs(user, "diff", "box").stdout.splitlines())
        assert lines == [
            *("C /d", "D /d/e", "C /d/g", "A /d/h", "A /d/h/f"),
            *("C /etc", "D /etc/motd", "A /etc/other"),
            *("A /new", "A /new/a", "D /top"),
        ]
        zeros = unionfs(user, "diff", "-z", "box").stdout
        assert own(zeros.split("\0")[:-1]) == lines
        report = json.loads(unionfs(user, "diff", "--json", "box").stdout)
        assert report["name"] == "box"
        assert own([f"{change['kind']} {change['path']}" for change in report["changes"]]) == lines
    finally:
        assert unionfs(user, "rm", "box").returncode == 0


def test_diff_of_a_running_container_by_its_id(user: User, rootfs: list[Path]) -> None:
    lowers = [word for lower in rootfs for word in ("--lower", str(lower))]
    script = "touch /box/one; echo ready; read x; touch /box/two; echo ready; read x"
    child = user.popen([*user.unionfs_cmd, "run", "-i", "--name", "box", *lowers, "sh", "-c", script])
    assert child.stdout is not None
    assert child.stdin is not None
    assert child.stdout.readline() == "ready\n"
    (listed,) = json.loads(unionfs(user, "ps", "--json").stdout)
    assert (listed["name"], listed["status"], listed["exit_code"]) == ("box", "running", None)
    assert own(unionfs(user, "diff", "box").stdout.splitlines()) == ["A /one"]
    child.stdin.write("\n")
    child.stdin.flush()
    assert child.stdout.readline() == "ready\n"
    assert own(unionfs(user, "diff", listed["id"][:6]).stdout.splitlines()) == ["A /one", "A /two"]
    assert "still running: box" in unionfs(user, "rm", "box").stderr
    child.communicate("\n", timeout=limit(TIMEOUT_S))
    assert unionfs(user, "ps", "-q").stdout == ""
    (listed,) = json.loads(unionfs(user, "ps", "-a", "--json").stdout)
    assert (listed["status"], listed["exit_code"], listed["pid"]) == ("exited", 0, None)
    assert unionfs(user, "rm", listed["id"][:12]).returncode == 0
    assert unionfs(user, "ps", "-a", "-q").stdout == ""


def cost(user: User) -> dict[str, dict[str, Any]]:
    """The copy-ups below /box, as `unionfs diff --cost --json` tells, in its order."""
    told = json.loads(unionfs(user, "diff", "--cost", "--json", "box").stdout)
    assert told["files"] == len(told["copy_ups"])
    assert told["bytes"] == sum(one["bytes"] for one in told["copy_ups"])
    assert told["wasted_bytes"] == sum(one["bytes"] for one in told["copy_ups"] if one["wasted"])
    return {one["path"]: one for one in told["copy_ups"] if one["path"].startswith("/box/")}


def test_what_its_copy_ups_have_cost(user: User, rootfs: list[Path]) -> None:
    box = rootfs[1] / "box"
    for name, size in {"big": 300_000, "cut": 200_000, "moved": 90_000, "same": 80_000, "linked": 70_000}.items():
        (box / name).write_bytes(os.urandom(size))
    os.link(box / "linked", box / "second")
    user.own(rootfs[1])
    lowers = [word for lower in rootfs for word in ("--lower", str(lower))]
    script = """cd /box; chmod 600 big; truncate -s 100000 cut; mv moved d/elsewhere; cat same >new; cat new >same
        chmod 600 linked second; cp -p big copy; echo ready; read x
        printf x | dd of=big conv=notrunc status=none; rm linked second"""
    child = user.popen([*user.unionfs_cmd, "run", "-i", "--name", "box", *lowers, "sh", "-c", script])
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    running = cost(user)
    child.communicate("\n", timeout=limit(TIMEOUT_S))
    stopped = cost(user)
    lines = unionfs(user, "diff", "--cost", "box")
    assert unionfs(user, "rm", "box").returncode == 0
    assert list(running) == ["/box/big", "/box/cut", "/box/d/elsewhere", "/box/same", "/box/linked"]
    assert [one["wasted"] for one in running.values()] == [True, False, True, True, True]
    assert [one["size"] for one in running.values()] == [300_000, 100_000, 90_000, 80_000, 70_000]
    if running["/box/big"]["bytes"]:  # not shared by reflink
        assert [one["bytes"] for one in running.values()] == [300_000, 100_000, 90_000, 80_000, 70_000]
    assert {one["branch"] for one in running.values()} == {str(rootfs[1])}
    assert "xxh3" not in running["/box/cut"]
    assert {path: one["wasted"] for path, one in stopped.items()} == {
        "/box/big": False,
        "/box/cut": False,
        "/box/d/elsewhere": True,
        "/box/same": True,
    }
    assert running["/box/big"]["xxh3"] != stopped["/box/big"]["xxh3"]
    assert re.search(r"KiB  wasted   /box/d/elsewhere$", lines.stdout, re.MULTILINE)
    assert "needlessly: their content equals the lower's" in lines.stderr


@as_ordinary_user
def test_costs_cannot_be_printed_with_nul_bytes(user: User) -> None:
    done = unionfs(user, "diff", "--cost", "-z", "box")
    assert done.returncode == 2
    assert "not allowed with" in done.stderr


@as_ordinary_user
def test_only_a_view_of_this_machine_can_be_applied(user: User, rootfs: list[Path]) -> None:
    run(user, rootfs, "touch /box/a")
    done = unionfs(user, "apply", "box")
    assert done.returncode == 1
    assert "not of this machine's /" in done.stderr
    assert unionfs(user, "rm", "box").returncode == 0


@as_ordinary_user
def test_the_list_is_a_table(user: User, rootfs: list[Path]) -> None:
    run(user, rootfs, "touch /box/a; exit 0 # \x1b[31m")
    head, line = unionfs(user, "ps", "-a", "--no-trunc").stdout.splitlines()
    assert head.split()[:3] == ["CONTAINER", "ID", "IMAGE"]
    assert "\x1b" not in line
    assert re.search(r"Exited \(0\) (\d+|Less than a) seconds? ago +box$", line)
    unionfs(user, "rm", "box")


@as_ordinary_user
@pytest.mark.parametrize("verb", ["diff", "rm", "apply"])
def test_unknown_containers(user: User, verb: str) -> None:
    done = unionfs(user, verb, "nobody")
    assert done.returncode == 1
    assert "no such container: nobody" in done.stderr
    assert "Traceback" not in done.stderr


@as_ordinary_user
def test_rm_removes_the_other_containers_after_a_failure(user: User, rootfs: list[Path]) -> None:
    run(user, rootfs, "mkdir -p /box/x/y; chmod 0 /box/x")
    done = unionfs(user, "rm", "nobody", "box")
    assert done.returncode == 1
    assert done.stdout == "box\n"
    assert unionfs(user, "ps", "-a", "-q").stdout == ""
