"""Partial files: read and changed through a real mount, and completed for other readers."""

from __future__ import annotations

import os
import random
import subprocess
import tarfile
from collections.abc import Iterator
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import pytest

from tests.support import tiny
from tests.support.marks import as_ordinary_user
from tests.support.mounts import mounted
from tests.support.rootfs import as_container_root, unpack
from tests.support.timing import limit
from tests.support.users import User
from unionfs.fuse.options import DEFAULT_TRANSPORT

pytestmark = pytest.mark.usefixtures("fuse_device")

SIZE = 3 << 20
OPTIONS = ("--partial-from", "1M")
CONTENT = random.Random(1).randbytes(SIZE)
WANT = CONTENT[:700_000] + b"own" + CONTENT[700_003:]

CHANGE = """
import mmap, os, sys
os.chdir(sys.argv[1])
os.link("meta", "linked")
os.unlink("linked")
os.chmod("meta", 0o640)
os.rename("meta", "moved")
fd = os.open("big", os.O_RDWR)
os.pwrite(fd, b"own", 700_000)
os.fsync(fd)
with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as seen:
    assert seen[699_999:700_004] == os.pread(fd, 5, 699_999)
assert os.lseek(fd, 0, os.SEEK_HOLE) == os.fstat(fd).st_size
print(os.stat("moved").st_blocks >= 6000)
"""


@pytest.fixture
def branches(user: User, scratch: Path) -> tuple[Path, Path, Path]:
    """A lower with two files of SIZE bytes, an empty upper and a mountpoint."""
    made = (scratch / "lower", scratch / "upper", scratch / "mnt")
    for directory in (*made, scratch / "upper.work"):
        directory.mkdir()
        user.own(directory)
    for name in ("big", "meta"):
        (made[0] / name).write_bytes(CONTENT)
        user.own(made[0] / name)
    return made


def digest(user: User, path: Path) -> str:
    """The SHA-256 of a file that only the user may read."""
    return user.run(["sha256sum", path]).stdout.split()[0]


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def marks(path: Path) -> list[str]:
    return [name for name in os.listxattr(path) if "overlay." in name or name.endswith("partial")]


def test_a_mount_is_completed(user: User, branches: tuple[Path, Path, Path], transport: str) -> None:
    lower, upper, mountpoint = branches
    with mounted([lower], mountpoint, user=user, transport=transport, upper=upper, options=OPTIONS) as mount:
        assert user.python(CHANGE, mount).stdout == "True\n"
        assert digest(user, mount / "big") == sha256(WANT).hexdigest()
        assert allocated(upper / "big") <= 256 << 10
        assert allocated(upper / "moved") <= 16 << 10
        if transport != DEFAULT_TRANSPORT:
            failed = user.unionfs("complete", mount, check=False)
            assert failed.returncode == 1
            assert "kernel transport" in failed.stderr
            return
        user.unionfs("complete", mount)
        assert (upper / "big").read_bytes() == WANT
        assert (upper / "moved").read_bytes() == CONTENT
        assert marks(upper / "big") == marks(upper / "moved") == []
        assert digest(user, mount / "big") == sha256(WANT).hexdigest()
    assert (lower / "big").read_bytes() == CONTENT


@as_ordinary_user
@pytest.mark.transport(DEFAULT_TRANSPORT)
def test_umount_completes(user: User, branches: tuple[Path, Path, Path]) -> None:
    lower, upper, mountpoint = branches
    user.unionfs("mount", "--lower", lower, "--upper", upper, *OPTIONS, "--durability", "strict", mountpoint)
    user.python(CHANGE, mountpoint)
    user.unionfs("umount", mountpoint)
    assert marks(upper / "big") != []
    user.unionfs("mount", "--lower", lower, "--upper", upper, "--watch", mountpoint)
    assert digest(user, mountpoint / "big") == sha256(WANT).hexdigest()
    user.unionfs("umount", "--complete", mountpoint)
    assert (upper / "big").read_bytes() == WANT
    assert (upper / "moved").read_bytes() == CONTENT
    assert marks(upper / "big") == marks(upper / "moved") == []


@as_ordinary_user
@pytest.mark.transport(DEFAULT_TRANSPORT)
def test_missing_data_is_reported(user: User, branches: tuple[Path, Path, Path], scratch: Path) -> None:
    lower, upper, mountpoint = branches
    user.unionfs("mount", "--lower", lower, "--upper", upper, *OPTIONS, mountpoint)
    user.python(CHANGE, mountpoint)
    user.unionfs("umount", mountpoint)
    (lower / "meta").unlink()
    log = user.home / "log"
    user.unionfs("mount", "--lower", lower, "--upper", upper, "--log", log, mountpoint)
    failed = user.unionfs("umount", "--complete", mountpoint, check=False)
    assert failed.returncode == 1
    assert "Input/output error" in failed.stderr
    assert "'/meta' is missing or has changed" in log.read_text()
    user.unionfs("umount", mountpoint)


@pytest.fixture
def rootfs(user: User, scratch: Path) -> Iterator[Path]:
    root = unpack(tiny.make(scratch / "tiny.tar"), scratch / "root", user)
    script = "dd if=/dev/urandom of=big bs=1M count=3 2>/dev/null; cp big meta"
    user.run([*as_container_root(user), "sh", "-c", script], cwd=root, timeout_s=120)
    yield root
    user.unionfs("rm", "-f", "c", check=False)


@pytest.mark.transport(DEFAULT_TRANSPORT)
@pytest.mark.parametrize("running", [False, True])
def test_readers_of_a_container_see_whole_files(user: User, rootfs: Path, running: bool) -> None:
    change = "printf own | dd of=/big bs=1 seek=700000 conv=notrunc 2>/dev/null; chmod 640 /meta"
    script = f"{change}; touch /done; sleep 100" if running else change
    user.unionfs("run", *(["-d"] if running else []), "--name", "c", *OPTIONS, "--lower", rootfs, "sh", "-c", script)
    if running:
        user.unionfs("exec", "c", "sh", "-c", "while [ ! -e /done ]; do sleep 0.1; done", timeout_s=60)
    done = subprocess.run(
        [*user.prefix, *user.unionfs_cmd, "export", "c"],
        env=dict(user.env), cwd=user.home, capture_output=True, timeout=limit(120), check=True,
    )  # fmt: skip
    with tarfile.open(fileobj=BytesIO(done.stdout)) as tar:
        found = {entry.name.removeprefix("./"): tar.extractfile(entry) for entry in tar if entry.isfile()}
        big, meta = found["big"], found["meta"]
        assert big is not None
        assert meta is not None
        original = (rootfs / "big").read_bytes()
        assert big.read() == original[:700_000] + b"own" + original[700_003:]
        assert meta.read() == original
    assert {"C /big", "C /meta"} <= set(user.unionfs("diff", "c").stdout.splitlines())
    user.unionfs("stop", "-t", "0", "c")
