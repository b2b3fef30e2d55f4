"""`unionfs branch` on containers: their union while they run, and their record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Box
from tests.support.marks import as_ordinary_user
from tests.support.users import User


def _stack(box: Box, name: str) -> list[str]:
    return [line["path"] for line in json.loads(box("branch", "ls", "--json", name).stdout)]


def _layer(user: User, name: str, **files: str) -> Path:
    made = user.home / name
    (made / "opt").mkdir(parents=True)
    for path, text in files.items():
        (made / "opt" / path).write_text(text)
    user.own(made)
    return made


@as_ordinary_user
def test_branches_of_a_container(box: Box, user: User) -> None:
    layer, other = _layer(user, "layer", tool="one\n"), _layer(user, "other", tool="two\n", more="more\n")
    box("run", "-d", "--name", "on", "debian:1", "sleep", "1000")
    before = _stack(box, "on")
    box("branch", "add", "on", layer)
    assert box("exec", "on", "cat", "/opt/tool").stdout == "one\n"
    box("branch", "add", "on", other, "--append")
    assert box("exec", "on", "sh", "-c", "cat /opt/*").stdout == "more\none\n"
    box("branch", "mv", "on", other, "--at", "1")
    assert box("exec", "on", "sh", "-c", "cat /opt/*; echo mine > /opt/more; ls /proc/1/comm").stdout == (
        "more\ntwo\n/proc/1/comm\n"
    )
    assert _stack(box, "on") == [before[0], str(other), str(layer), *before[1:]]
    refused = box("branch", "rm", "on", other, check=False)
    assert refused.returncode == 1
    assert "copied up: opt/more\n" in refused.stderr
    assert "objects that come from" in refused.stderr
    refused = box("commit", "on", check=False)
    assert "it has other branches than its image" in refused.stderr
    box("stop", "-t", "0", "on")
    assert _stack(box, "on") == [before[0], str(other), str(layer), *before[1:]]
    refused = box("branch", "rm", "on", other, check=False)
    assert "copied up: opt/more\n" in refused.stderr
    box("branch", "rm", "on", other, "--force")
    box("branch", "mv", "on", layer, "--at", str(len(before) - 1))
    box("start", "on")
    assert box("exec", "on", "sh", "-c", "cat /opt/*").stdout == "mine\none\n"
    box("branch", "rm", "on", layer)
    assert _stack(box, "on") == before
    for words, why in (
        (("add", "on", user.home / "missing"), "No such file or directory"),
        (("rm", "on", layer), "is no lower of this container"),
        (("add", "nobody", layer), "no such container: nobody"),
    ):
        refused = box("branch", *words, check=False)
        assert refused.returncode == 1
        assert why in refused.stderr
    box("rm", "-f", "on")


@pytest.mark.parametrize("words", [("ls", "m", "d"), ("add", "m"), ("mv", "m", "d"), ("rm", "m", "d", "--at", "1")])
def test_what_makes_no_sense(root_user: User, words: tuple[str, ...]) -> None:
    done = root_user.run([*root_user.unionfs_cmd, "branch", *words], check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("unionfs: branch: ")
