"""`unionfs diff`, `ps` and `rm` of containers that `unionfs run` made."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.core.trees import tree
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


def test_while_it_runs_and_by_its_id(user: User, rootfs: list[Path]) -> None:
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
    child.communicate("\n", timeout=TIMEOUT_S)
    assert unionfs(user, "ps", "-q").stdout == ""
    (listed,) = json.loads(unionfs(user, "ps", "-a", "--json").stdout)
    assert (listed["status"], listed["exit_code"], listed["pid"]) == ("exited", 0, None)
    assert unionfs(user, "rm", listed["id"][:12]).returncode == 0
    assert unionfs(user, "ps", "-a", "-q").stdout == ""


def test_only_a_view_of_this_machine_can_be_applied(user: User, rootfs: list[Path]) -> None:
    run(user, rootfs, "touch /box/a")
    done = unionfs(user, "apply", "box")
    assert done.returncode == 1
    assert "not of this machine's /" in done.stderr
    assert unionfs(user, "rm", "box").returncode == 0


def test_the_list_is_a_table(user: User, rootfs: list[Path]) -> None:
    run(user, rootfs, "touch /box/a; exit 0 # \x1b[31m")
    head, line = unionfs(user, "ps", "-a", "--no-trunc").stdout.splitlines()
    assert head.split()[:3] == ["CONTAINER", "ID", "IMAGE"]
    assert "\x1b" not in line
    assert re.search(r"Exited \(0\) \d+ seconds ago +box$", line)
    unionfs(user, "rm", "box")


@pytest.mark.parametrize("verb", ["diff", "rm", "apply"])
def test_unknown_containers(user: User, verb: str) -> None:
    done = unionfs(user, verb, "nobody")
    assert done.returncode == 1
    assert "no such container: nobody" in done.stderr
    assert "Traceback" not in done.stderr


def test_rm_removes_what_it_can(user: User, rootfs: list[Path]) -> None:
    run(user, rootfs, "mkdir -p /box/x/y; chmod 0 /box/x")
    done = unionfs(user, "rm", "nobody", "box")
    assert done.returncode == 1
    assert done.stdout == "box\n"
    assert unionfs(user, "ps", "-a", "-q").stdout == ""
