"""Branches on filesystems that lack something, are small, or change under the mount."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mounted.subjects import OURS
from tests.support import kernel_caches
from tests.support.mounts import mounted
from tests.support.timing import limit
from tests.support.users import User

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounting filesystems")

MIB = 1 << 20


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.transport(name)) for name in OURS])
def each_transport(request: pytest.FixtureRequest, fuse_device: Path) -> str:
    """The transports, one after the other."""
    return str(request.param)


def run(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    """A command that must not fail."""
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=limit(60))


@contextmanager
def mounted_image(made: list[str | Path], image: Path, at: Path, kind: str) -> Iterator[Path]:
    """Make a filesystem image by the command `made` and mount it. Skips where the kernel lacks the filesystem."""
    run(*made)
    at.mkdir()
    tried = subprocess.run(
        ["mount", "-t", kind, "-o", "loop", image, at], capture_output=True, text=True, timeout=limit(60), check=False
    )
    if tried.returncode:
        if kind not in Path("/proc/filesystems").read_text().split():
            pytest.skip(f"this kernel has no {kind}")
        pytest.fail(tried.stderr)
    try:
        yield at
    finally:
        run("umount", "-l", at)


@pytest.mark.parametrize("kind", ["squashfs", "erofs"])
def test_a_lower_without_acls(kind: str, each_transport: str, ordinary_user: User, scratch: Path) -> None:
    """Squashfs answers EOPNOTSUPP where others say that there is no ACL: the kernel would refuse every access."""
    tree, image = scratch / "tree", scratch / "image"
    (tree / "d").mkdir(parents=True)
    (tree / "d/file").write_text("content")
    shutil.copy("/bin/true", tree / "true")
    os.chown(tree / "d", ordinary_user.uid, ordinary_user.gid)
    command: list[str | Path] = ["mkfs.erofs", image, tree]
    if kind == "squashfs":
        command = ["mksquashfs", tree, image, "-quiet"]
    work = scratch / "user"
    work.mkdir()
    os.chown(work, ordinary_user.uid, ordinary_user.gid)
    with mounted_image(command, image, scratch / "lower", kind) as lower:
        ordinary_user.run(["mkdir", *(work / name for name in ("upper", "work", "merged"))])
        with mounted(
            [lower],
            work / "merged",
            user=ordinary_user,
            transport=each_transport,
            upper=work / "upper",
            work=work / "work",
        ):
            script = f"cd {work}/merged; cat d/file; ls d; ./true && echo ran; echo new >d/new; cat d/new"
            said = ordinary_user.run(["sh", "-c", script]).stdout
    assert said == "contentfile\nran\nnew\n"


def test_a_copy_up_that_fails_takes_no_space(each_transport: str, root_user: User, scratch: Path) -> None:
    image, lower, merged = scratch / "image", scratch / "lower", scratch / "merged"
    lower.mkdir()
    merged.mkdir()
    (lower / "huge").write_bytes(os.urandom(MIB) * 40)
    with open(image, "wb") as file:
        file.truncate(24 * MIB)
    with mounted_image(["mkfs.ext4", "-q", image], image, scratch / "small", "ext4") as small:
        (small / "upper").mkdir()
        (small / "work").mkdir()
        with mounted(
            [lower], merged, user=root_user, transport=each_transport, upper=small / "upper", work=small / "work"
        ):
            before = os.statvfs(small).f_bavail
            failed = subprocess.run(["chmod", "600", merged / "huge"], capture_output=True, text=True, check=False)
            assert "No space left on device" in failed.stderr
            assert before - os.statvfs(small).f_bavail < MIB // 4096
            run("sh", "-c", f"echo hi >{merged}/new && cat {merged}/new && cmp {merged}/huge {lower}/huge")


def test_what_is_read_is_not_open_for_writing(each_transport: str, root_user: User, scratch: Path) -> None:
    """A program may be started from the upper after it was read through the union, and read there while it runs."""
    lower, upper, work, merged = (scratch / name for name in ("lower", "upper", "work", "merged"))
    for directory in (lower, upper, work, merged):
        directory.mkdir()
    shutil.copy("/bin/sleep", upper / "sleep")
    with mounted([lower], merged, user=root_user, transport=each_transport, upper=upper, work=work):
        run("cmp", merged / "sleep", "/bin/sleep")
        running = subprocess.Popen([upper / "sleep", "60"])
        try:
            kernel_caches.drop("1")
            run("cmp", merged / "sleep", "/bin/sleep")
        finally:
            running.kill()
            running.wait()


def test_an_upper_that_becomes_read_only_is_read(each_transport: str, root_user: User, scratch: Path) -> None:
    lower, merged, where = scratch / "lower", scratch / "merged", scratch / "where"
    for directory in (lower, merged, where):
        directory.mkdir()
    run("mount", "-t", "tmpfs", "none", where)
    try:
        for name in ("upper", "work"):
            (where / name).mkdir()
        (where / "upper/file").write_text("content")
        with mounted(
            [lower], merged, user=root_user, transport=each_transport, upper=where / "upper", work=where / "work",
            expected_log="work directory",
        ):  # fmt: skip
            run("mount", "-o", "remount,ro", where)
            assert run("cat", merged / "file").stdout == "content"
            assert stat.S_ISREG(int(run("stat", "-c", "%f", merged / "file").stdout, 16))
            run("mount", "-o", "remount,rw", where)
    finally:
        run("umount", "-l", where)
