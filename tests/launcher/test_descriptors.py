"""Standard input and output, and that the command inherits no other descriptor."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.launcher.conftest import Run
from tests.support.users import User
from unionfs.fuse.options import DEFAULT_TRANSPORT

pytestmark = pytest.mark.transport(DEFAULT_TRANSPORT)


def test_no_descriptor_is_inherited(user: User, debian: Path, scratch: Path) -> None:
    script = 'exec 7</etc/passwd 8>"$1"/file 199</etc; shift; exec "$@"'
    command = [*user.unionfs_cmd, "run", "--rm", os.fspath(debian), "sh", "-c", "ls /proc/self/fd"]
    user.own(scratch)
    # 3 is the listing itself.
    assert user.run(["bash", "-c", script, "bash", scratch, *command]).stdout.split() == ["0", "1", "2", "3"]


@pytest.mark.parametrize("closing", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_descriptors(user: User, debian: Path, closing: str, scratch: Path) -> None:
    user.own(scratch)
    inside = ("sh", "-c", "ls /proc/self/fd > /x/fds")
    command = [*user.unionfs_cmd, "run", "--rm", "-v", f"{scratch}:/x", os.fspath(debian), *inside]
    user.run(["sh", "-c", f'"$@" {closing}', "sh", *command])
    assert (scratch / "fds").read_text().split() == ["0", "1", "2", "3"]


def test_standard_input_is_read_only_if_asked_for(run: Run, debian: Path) -> None:
    assert run(debian, "cat", stdin="hello").stdout == ""
    assert run("-i", debian, "cat", stdin="hello").stdout == "hello"
    large = "0123456789abcdef" * 65536
    assert run("-i", debian, "cat", stdin=large).stdout == large


def test_pipes_can_be_opened_again_by_another_user(user: User, debian: Path, tidy: None) -> None:
    inside = "echo out > /dev/stdout; echo err > /dev/stderr"
    command = [*user.unionfs_cmd, "run", "--rm", "-u", "www-data", os.fspath(debian), "sh", "-c", inside]
    assert user.run(["sh", "-c", '"$@" 2>&1 | cat', "sh", *command]).stdout == "out\nerr\n"


def test_a_file_for_output_keeps_its_owner(user: User, debian: Path, scratch: Path) -> None:
    user.own(scratch)
    command = [*user.unionfs_cmd, "run", "--rm", "-u", "www-data", os.fspath(debian), "echo", "text"]
    user.run(["sh", "-c", 'file="$1"; shift; exec "$@" > "$file"', "sh", scratch / "out", *command])
    assert (scratch / "out").read_text() == "text\n"
    assert (scratch / "out").stat().st_uid == user.uid
