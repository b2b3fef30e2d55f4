"""Mounting from a program: the same union for all programs, unmounted at the end of the block or of the process."""

from __future__ import annotations

import errno
import os
import select
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

import unionfs
from tests.support.mountinfo import mount_at
from tests.support.timing import limit
from tests.support.users import User


@pytest.fixture
def base(scratch: Path, fuse_device: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: two lowers, an empty upper, a mountpoint."""
    del fuse_device
    for name in ("top", "bottom", "changes", "merged"):
        (scratch / name).mkdir()
    (scratch / "top" / "a").write_text("top")
    (scratch / "bottom" / "a").write_text("bottom")
    (scratch / "bottom" / "b").write_text("b")
    monkeypatch.chdir(scratch)
    return scratch


def test_a_union_is_mounted_for_a_block(base: Path) -> None:
    with unionfs.mount(["top", "bottom"], "merged", upper="changes") as mounted:
        assert mounted.is_mounted
        assert mounted.mountpoint == os.fspath(base / "merged")
        assert (base / "merged" / "a").read_text() == "top"
        (base / "merged" / "b").write_text("new")
        stats = mounted.stats()
        own = stats if stats["started_by"].startswith("parent ") else stats["keeper"] or stats
        assert (own["pid"], stats["copy_ups"]["files"]) == (mounted.pid, 1)
        assert (stats["is_view"], stats["views"]["mounted"]) == (False, 0)
        pidfd = os.pidfd_open(mounted.pid)
    assert mount_at(base / "merged") is None
    assert select.select([pidfd], [], [], 0)[0] == [pidfd], "its daemon did not end"
    os.close(pidfd)
    assert (base / "changes" / "b").read_text() == "new"
    assert [(one.kind, one.path) for one in unionfs.list_changes("changes", ["top", "bottom"])] == [("changed", "/b")]
    with pytest.raises(unionfs.MountError) as caught:
        mounted.stats()
    assert caught.value.errno == errno.ENOTCONN


def test_a_mount_in_use_is_unmounted_lazily_only(base: Path) -> None:
    with unionfs.mount(["bottom"], "merged") as mounted, open(base / "merged" / "a") as held:
        with pytest.raises(unionfs.MountError) as caught:
            mounted.unmount()
        assert caught.value.errno == errno.EBUSY
        assert mounted.is_mounted
        mounted.unmount(lazy=True)
        assert mount_at(base / "merged") is None
        assert held.read() == "bottom"


def test_an_error_in_the_block_is_raised_although_the_union_is_in_use(base: Path) -> None:
    with ExitStack() as later:
        with pytest.raises(KeyError):
            _fail_while_in_use(base / "merged", later)
        assert mount_at(base / "merged") is None


def _fail_while_in_use(mountpoint: Path, later: ExitStack) -> None:
    with unionfs.mount(["bottom"], mountpoint):
        later.enter_context(open(mountpoint / "a"))  # noqa: SIM115 - closed by the stack
        raise KeyError("the caller's own")


def test_it_is_unmounted_when_the_process_is_killed(base: Path) -> None:
    code = """if True:
        import os, signal, unionfs
        mounted = unionfs.mount(["bottom"], "merged")
        assert sorted(os.listdir("merged")) == ["a", "b"]
        print(mounted.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    root = os.fspath(Path(unionfs.__path__[0]).parent)
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root}, stdout=subprocess.PIPE, check=False
    )
    pidfd = -1
    try:
        pidfd = os.pidfd_open(int(done.stdout))
        assert select.select([pidfd], [], [], limit(30))[0] == [pidfd], "the daemon did not end"
    except ProcessLookupError:
        pass  # it has gone already
    finally:
        if pidfd >= 0:
            os.close(pidfd)
    assert mount_at(base / "merged") is None


def test_stay_keeps_the_union_mounted(base: Path) -> None:
    mounted = unionfs.mount(["bottom"], "merged", stay=True)
    try:
        assert mounted.is_mounted
        assert mounted._connection not in sys.modules["unionfs.api.mounting"]._lifelines
    finally:
        mounted.unmount()
    assert mount_at(base / "merged") is None
    mounted.unmount()  # nothing to do, and no error


def test_an_upper_has_one_union_at_a_time(base: Path) -> None:
    (base / "second").mkdir()
    with unionfs.mount(["bottom"], "merged", upper="changes"):
        with pytest.raises(unionfs.MountError) as mounting:
            unionfs.mount(["bottom"], "second", upper="changes")
        assert (mounting.value.errno, mount_at(base / "second")) == (errno.EBUSY, None)
        with pytest.raises(unionfs.OptionError) as opening:
            unionfs.Union(["bottom"], upper="changes")
        assert opening.value.errno == errno.EBUSY
    with unionfs.Union(["bottom"], upper="changes"), pytest.raises(unionfs.MountError) as again:
        unionfs.mount(["bottom"], "merged", upper="changes")
    assert (again.value.errno, mount_at(base / "merged")) == (errno.EBUSY, None)


@pytest.mark.parametrize(
    ("lower", "mountpoint", "code"),
    [("missing", "merged", errno.ENOENT), ("bottom", "missing", errno.ENOENT), ("bottom", "bottom/a", errno.ENOTDIR)],
)
def test_what_cannot_be_mounted_is_refused_with_its_errno(base: Path, lower: str, mountpoint: str, code: int) -> None:
    with pytest.raises(unionfs.MountError) as caught:
        unionfs.mount([lower], mountpoint, upper="changes")
    assert caught.value.errno == code
    assert sorted(os.listdir(base)) == ["bottom", "changes", "merged", "top"]  # no work directory is left


def test_a_program_with_threads_may_mount(base: Path) -> None:
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    try:
        with unionfs.mount(["bottom"], b"merged"):
            assert (base / "merged" / "a").read_text() == "bottom"
    finally:
        over.set()
        thread.join()


def test_an_ordinary_user_mounts(ordinary_user: User, scratch: Path, fuse_device: Path) -> None:
    del fuse_device
    for name in ("lower", "merged"):
        (scratch / name).mkdir()
        ordinary_user.own(scratch / name)
    (scratch / "lower" / "a").write_text("a")
    code = """if True:
        import os, sys, unionfs
        with unionfs.mount([sys.argv[1]], sys.argv[2]):
            print(os.listdir(sys.argv[2]))
        print(os.listdir(sys.argv[2]))
    """
    done = ordinary_user.run([sys.executable, "-c", code, scratch / "lower", scratch / "merged"])
    assert done.stdout == "['a']\n[]\n"
