"""`unionfs why`: of a container, of a mount, of directories."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Box
from tests.support.marks import as_ordinary_user
from tests.support.users import User


@as_ordinary_user
def test_of_a_container(box: Box) -> None:
    box("run", "--name", "w", "debian:1", "sh", "-c", "rm /etc/issue; echo x >> /etc/passwd; chmod 700 /root /bin/bash")
    told = json.loads(box("why", "--json", "w:/etc/passwd").stdout)
    assert (told["shown"], told["kind"], told["path"]) == (True, "file", "/etc/passwd")
    assert [(one["role"], one["shows"]) for one in told["branches"][:2]] == [("upper", "provides"), ("lower", "hidden")]
    large = json.loads(box("why", "--json", "w:/usr/bin/bash").stdout)["branches"][0]
    assert large["shows"] == "provides"
    if "data" in large:  # else the filesystem has shared them
        assert (large["data"]["own"], large["data"]["at"], large["data"]["fault"]) == (0, "/usr/bin/bash", "")
    gone = box("why", "w:/etc/issue", check=False)
    assert gone.returncode == 1
    assert "there is no /etc/issue" in gone.stdout
    assert "whiteout, AUFS: /etc/.wh.issue" in gone.stdout
    assert box("why", "nobody:/etc", check=False).returncode == 1
    assert "no branch has it" in box("why", "w:/nosuch", check=False).stdout


@as_ordinary_user
def test_of_a_mount_and_of_directories(user: User, scratch: Path, fuse_device: Path) -> None:
    for name in ("top/d", "bottom/d", "mnt"):
        (scratch / name).mkdir(parents=True)
    (scratch / "bottom/d/f").write_text("x")
    (scratch / "top/d/.wh.f").touch()
    user.own(scratch)
    user.unionfs("mount", "--lower", scratch / "top", "--lower", scratch / "bottom", scratch / "mnt")
    try:
        of_mount = user.unionfs("why", "--json", scratch / "mnt/d/f", check=False)
    finally:
        user.unionfs("umount", scratch / "mnt")
    words = ("--lower", scratch / "top", "--lower", scratch / "bottom")
    of_directories = user.unionfs("why", "--json", *words, "/d/f", check=False)
    assert json.loads(of_mount.stdout) == json.loads(of_directories.stdout)
    assert [one["shows"] for one in json.loads(of_mount.stdout)["branches"]] == ["hides", "hidden"]
    assert (of_mount.returncode, of_directories.returncode) == (1, 1)
    nowhere = user.unionfs("why", scratch / "top", check=False)
    assert (nowhere.returncode, "not in a mounted union" in nowhere.stderr) == (1, True)
    assert user.unionfs("why", "--upper", "/x", "/d", check=False).returncode == 2
