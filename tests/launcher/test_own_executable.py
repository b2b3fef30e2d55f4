"""No container can write to the interpreter of the host."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests.support.users import User
from unionfs.fuse.options import DEFAULT_TRANSPORT

pytestmark = [pytest.mark.transport(DEFAULT_TRANSPORT), pytest.mark.parametrize("user", ["root"], indirect=True)]


def test_process_1_of_roots_container_runs_from_a_read_only_mount(user: User, debian: Path, tidy: None) -> None:
    """It is the host's interpreter, and in the container /proc/1/exe leads to it: CVE-2019-5736."""
    user.unionfs("run", "-d", "--name", "box", "--lower", debian, "sleep", "1000")
    (found,) = json.loads(user.unionfs("inspect", "box").stdout)
    fd = os.open(f"/proc/{found['State']['Pid']}/exe", os.O_RDONLY)
    try:
        assert os.path.samestat(os.fstat(fd), os.stat(sys.executable))
        assert os.fstatvfs(fd).f_flag & os.ST_RDONLY
    finally:
        os.close(fd)
        user.unionfs("rm", "-f", "box")


def test_a_mark_of_another_process_is_not_believed(user: User, debian: Path, tidy: None) -> None:
    """The variable that says that this was done does not reach the command, and one from outside changes nothing."""
    environment = {"_UNIONFS_PROTECTED": "1"}
    command = [*user.unionfs_cmd, "run", "--rm", "--lower", os.fspath(debian), "env"]
    assert "_UNIONFS" not in user.run(command, env=environment).stdout


def test_the_process_keeps_its_name(user: User) -> None:
    """ps(1) and pgrep(1) show the name, which execve(2) makes the last part of the path: a descriptor's number."""
    code = """
from unionfs.launcher import own_executable
own_executable.protect_if_writable()
own_executable.protect()
print(open("/proc/self/comm").read(), end="")
"""
    assert user.run([sys.executable, "-c", code]).stdout.strip() == Path(sys.executable).name
