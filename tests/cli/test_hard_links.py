"""Data written through one name of a hard link are found by every reader of the upper under the other names."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import tiny
from tests.support.marks import as_ordinary_user
from tests.support.mounts import mounted, umount
from tests.support.rootfs import as_container_root, unpack
from tests.support.timing import limit, wait_until
from tests.support.users import User

pytestmark = pytest.mark.usefixtures("fuse_device")

TIMEOUT_S = 120
WRITE = "echo new >/g; chmod 751 /g"


@pytest.fixture
def lower(user: User, scratch: Path) -> Iterator[Path]:
    """A root filesystem in which g, d/f and d/k/h are one file."""
    root = unpack(tiny.make(scratch / "tiny.tar"), scratch / "root", user)
    script = "mkdir -p d/k && echo old >g && ln g d/f && ln g d/k/h"
    user.run([*as_container_root(user), "sh", "-c", script], cwd=root, timeout_s=TIMEOUT_S)
    yield root
    unionfs(user, "rm", "-f", "c", "later", check=False)


def unionfs(user: User, *args: str | Path, check: bool = True) -> str:
    return user.run([*user.unionfs_cmd, *args], timeout_s=TIMEOUT_S, check=check).stdout


def exported(user: User, name: str) -> dict[str, tuple[str, int]]:
    """Content and mode of the names by which the tar that export writes has the file."""
    command = [*user.prefix, *user.unionfs_cmd, "export", name]
    done = subprocess.run(
        command, env=dict(user.env), cwd=user.home, capture_output=True, timeout=limit(120), check=True
    )
    found = {}
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        for entry in tar:
            if entry.name.lstrip("./").endswith(("g", "d/f", "e/f", "k/h")) and not entry.isdir():
                content = tar.extractfile(entry)
                assert content is not None
                found[entry.name.removeprefix("./")] = (content.read().decode(), entry.mode & 0o777)
    return {name: value for name, value in found.items() if not name.startswith(("bin", "lib", "usr"))}


def test_every_reader_of_a_container_that_ended(user: User, lower: Path) -> None:
    unionfs(user, "run", "--name", "c", "--lower", lower, "sh", "-c", WRITE)
    assert exported(user, "c") == dict.fromkeys(("g", "d/f", "d/k/h"), ("new\n", 0o751))
    changed = {"C /d", "C /d/f", "C /d/k", "C /d/k/h", "C /g"}
    assert changed <= set(unionfs(user, "diff", "c").splitlines())
    verdicts = json.loads(unionfs(user, "why", "--json", "c:/d/f"))
    assert verdicts["branches"][0]["holds"] is not None, "the upper has it"
    unionfs(user, "cp", "c:/d/f", "copied")
    assert (user.home / "copied").read_text() == "new\n"


def test_an_image_of_a_container_with_a_renamed_directory_and_a_deleted_name(user: User, lower: Path) -> None:
    script = f"mv /d /e; rm /e/k/h; {WRITE}"
    unionfs(user, "run", "--name", "c", "--lower", lower, "sh", "-c", script)
    assert exported(user, "c") == dict.fromkeys(("g", "e/f"), ("new\n", 0o751))
    image = unionfs(user, "commit", "-q", "c").strip()
    shown = unionfs(user, "run", "--name", "later", image, "sh", "-c", "cat /e/f /g; ls /e/k; ls -l /e/f; ls /")
    lines = shown.splitlines()
    assert lines[:2] == ["new", "new"]
    assert lines[2].startswith("-rwxr-x--x 2 "), "nothing is in /e/k, and the two names are one file"
    assert "d" not in lines


def test_readers_of_a_running_container(user: User, lower: Path) -> None:
    unionfs(user, "run", "-d", "--name", "c", "--lower", lower, "sh", "-c", f"{WRITE}; echo done; exec sleep 1000")
    wait_until(lambda: "done" in unionfs(user, "logs", "c"), "the container has written")
    assert {"C /d/f", "C /d/k/h", "C /g"} <= set(unionfs(user, "diff", "c").splitlines())
    assert exported(user, "c") == dict.fromkeys(("g", "d/f", "d/k/h"), ("new\n", 0o751))
    unionfs(user, "exec", "c", "sh", "-c", "echo newer >/d/k/h; rm /d/f")
    assert unionfs(user, "exec", "c", "cat", "/g") == "newer\n"
    image = unionfs(user, "commit", "-q", "c").strip()
    shown = unionfs(user, "run", "--name", "later", image, "sh", "-c", "cat /g /d/k/h; ls /d")
    assert shown.splitlines() == ["newer", "newer", "k"]


@as_ordinary_user
def test_a_container_whose_daemon_was_killed(user: User, lower: Path) -> None:
    unionfs(user, "run", "-d", "--name", "c", "--lower", lower, "sh", "-c", f"{WRITE}; echo done; exec sleep 1000")
    wait_until(lambda: "done" in unionfs(user, "logs", "c"), "the container has written")
    _kill(_daemons_of(user.home))
    unionfs(user, "wait", "c", check=False)  # it cannot go on without its root filesystem
    assert {"C /d/f", "C /d/k/h", "C /g"} <= set(unionfs(user, "diff", "c").splitlines())
    assert exported(user, "c") == dict.fromkeys(("g", "d/f", "d/k/h"), ("new\n", 0o751))


def _kill(daemons: set[int]) -> None:
    """Kill a keeper and then its daemon, so that no other daemon continues."""
    assert len(daemons) == 2
    for pid in sorted(daemons, key=lambda pid: Path(f"/proc/{pid}/comm").read_text().startswith("unionfs:")):
        os.kill(pid, signal.SIGKILL)


def _daemons_of(home: Path) -> set[int]:
    """Processes that hold a part of a work directory below `home`: a daemon and its keeper."""
    found = set()
    for directory in Path("/proc").glob("[0-9]*/fd"):
        with contextlib.suppress(OSError):  # it has ended
            for fd in os.listdir(directory):
                with contextlib.suppress(OSError):  # it was closed meanwhile
                    target = os.readlink(directory / fd)
                    if target.startswith(f"{home}/") and "/work/live-" in target:
                        found.add(int(directory.parent.name))
    return found


@as_ordinary_user
@pytest.mark.parametrize("killed", [False, True])
def test_an_upper_that_is_used_elsewhere(user: User, scratch: Path, killed: bool) -> None:
    lower, upper, work, merged = (scratch / name for name in ("lower", "upper", "work", "merged"))
    for directory in (lower / "d", upper, work, merged):
        directory.mkdir(parents=True)
    (lower / "g").write_text("old\n")
    os.link(lower / "g", lower / "d/f")
    user.own(scratch)

    def in_directory(script: str) -> str:  # which others than its user cannot even enter
        return user.run(["sh", "-c", f"cd {merged}; {script}"]).stdout

    last_words = "the keeper .* was killed" if killed else None  # the daemon may live long enough to log it
    with mounted([lower], merged, user=user, transport="kernel", upper=upper, work=work, expected_log=last_words):
        in_directory("mv d e; echo new >g; chmod 640 g")
        if killed:
            _kill(_daemons_of(scratch))
            umount(merged, user)
            user.run([*user.unionfs_cmd, "mount", "--lower", lower, "--upper", upper, "--work", work, merged])
    assert (upper / "e/f").read_text() == "new\n"
    assert (upper / "e/f").stat().st_ino == (upper / "g").stat().st_ino
    copy, second, other = scratch / "copy", scratch / "second", scratch / "other"
    user.run(["cp", "-a", upper, copy])
    for directory in (second, other):
        directory.mkdir()
    user.own(second, other)
    with mounted([lower], merged, user=user, transport="kernel", upper=copy, work=other):
        assert in_directory("cat e/f g; stat -c %a e/f") == "new\nnew\n640\n"
    with mounted([copy, lower], merged, user=user, transport="kernel", upper=second, work=other):
        assert in_directory("cat e/f g; echo 3 >e/f; cat g") == "new\nnew\n3\n"
