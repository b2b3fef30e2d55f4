"""`unionfs freeze` of containers, and what knows the new stack afterwards: restart, diff, commit, export, rm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Box
from tests.support.users import User

_COMMAND = """
echo one > /srv/f; mkdir /srv/d; echo x > /srv/d/x
n=0; while :; do n=$((n+1)); for f in a b; do echo $n > /srv/$f.new; mv /srv/$f.new /srv/$f; done; done"""
"""Changes a, then b: at any instant b is as old as a, or older by one."""


@pytest.mark.parametrize("user", ["ordinary", "root"], indirect=True)
def test_a_container_is_frozen(box: Box, user: User) -> None:
    box("run", "-d", "--name", "on", "debian:1", "sh", "-c", _COMMAND)
    while box("exec", "on", "cat", "/srv/b", check=False).returncode:
        pass
    frozen = Path(json.loads(box("freeze", "--json", "on", "first").stdout)["path"])
    assert frozen.name == "upper.first"
    box("exec", "on", "sh", "-c", "echo two >> /srv/f; rm /srv/d/x; chmod 700 /srv/d")
    wanted = ["C /srv", "A /srv/a", "A /srv/b", "A /srv/d", "A /srv/f"]
    assert [line for line in box("diff", "on").stdout.splitlines() if ".new" not in line] == wanted
    box("commit", "on", "frozen:1")
    box("exec", "on", "sh", "-c", "echo three >> /srv/f")
    assert (
        box("run", "--rm", "frozen:1", "sh", "-c", "cat /srv/f; ls /srv/d; stat -c %a /srv/d").stdout
        == "one\ntwo\n700\n"
    )
    first, second = map(int, box("run", "--rm", "frozen:1", "cat", "/srv/a", "/srv/b").stdout.split())
    assert 0 <= first - second <= 1
    stack = [line["path"] for line in json.loads(box("branch", "ls", "--json", "on").stdout)]
    assert stack[1:3] == [str(frozen.parent / "upper.1"), str(frozen)]
    refused = box("branch", "rm", "on", frozen, check=False)
    assert "holds changes of the container" in refused.stderr
    box("stop", "-t", "0", "on")
    assert [line for line in box("diff", "on").stdout.splitlines() if ".new" not in line] == wanted
    assert "upper.last" in box("freeze", "on", "last").stdout
    assert [line for line in box("diff", "on").stdout.splitlines() if ".new" not in line] == wanted
    box("commit", "on", "frozen:2")
    assert box("run", "--rm", "frozen:2", "cat", "/srv/f").stdout == "one\ntwo\nthree\n"
    assert (frozen / "srv" / "f").read_text() == "one\n"
    for name, why in (("last", "File exists"), ("a/b", "is no name")):
        refused = box("freeze", "on", name, check=False)
        assert (refused.returncode, why in refused.stderr) == (1, True)
    box("rm", "on")
    assert not frozen.parent.exists()
    box("rmi", "frozen:1", "frozen:2")
