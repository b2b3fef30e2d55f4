"""GNU tar compares the ctime of each directory before and after it reads it: it must find what stat(2) said before."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.mounted.subjects import OURS
from tests.support.mounts import mounted
from tests.support.users import User


@pytest.mark.parametrize("transport", [pytest.param(name, marks=pytest.mark.transport(name)) for name in OURS])
def test_directories_do_not_change_while_they_are_read(
    transport: str, ordinary_user: User, scratch: Path, fuse_device: Path
) -> None:
    os.chown(scratch, ordinary_user.uid, ordinary_user.gid)
    ordinary_user.run(["mkdir", "-p", scratch / "l/e/s/c", scratch / "u", scratch / "w", scratch / "m"])
    ordinary_user.run(["touch", scratch / "l/e/s/c/f", scratch / "l/e/g"])
    time.sleep(0.05)  # the copies must get a later ctime
    with mounted(
        [scratch / "l"], scratch / "m", user=ordinary_user, transport=transport, upper=scratch / "u", work=scratch / "w"
    ):
        script = "cd m; stat e e/s >../1; touch e/s/c/n; chmod 600 e/g; stat e e/s >../2; tar -cf ../t e; cmp ../1 ../2"
        said = ordinary_user.run(["sh", "-ec", f"cd {scratch}; {script}"])
    assert (said.stdout, said.stderr) == ("", "")
    listed = subprocess.check_output(["tar", "-tf", scratch / "t"], text=True).split()
    assert sorted(listed) == ["e/", "e/g", "e/s/", "e/s/c/", "e/s/c/f", "e/s/c/n"]
