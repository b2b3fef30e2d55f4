"""Trees that resist removal: too deep for any path, locked, full of links, partly somebody else's mount."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.core.children import as_user, expect, in_child
from tests.core.conftest import needs_root
from tests.core.trees import tree
from tests.support.timing import limit
from unionfs.core.branch import Branch
from unionfs.core.fds import FdCache
from unionfs.core.staging import Staging
from unionfs.syscalls import files
from unionfs.trees.remove import remove_path


def test_locked_directories_and_links(tmp_path: Path) -> None:
    outside = tree(tmp_path / "outside", "keep=1")
    top = tree(tmp_path / "top", f"a/b/c=1 a/b/:0000 a/:0500 l->{outside} d/e/f=1 p<fifo> ./:0300")
    remove_path(str(top))
    assert not top.exists()
    assert (outside / "keep").exists()


def test_a_missing_path_and_a_file(tmp_path: Path) -> None:
    remove_path(str(tmp_path / "nothing"))
    (tmp_path / "l").symlink_to(tree(tmp_path / "d", "keep=1"))
    remove_path(str(tmp_path / "l"))
    assert os.listdir(tmp_path) == ["d"]
    assert (tmp_path / "d/keep").exists()


@needs_root
@pytest.mark.parametrize("flag", ["+i", "+a"])
def test_immutable_and_append_only_ones(flag: str, tmp_path: Path) -> None:
    top = tree(tmp_path / "top", "f=1 d/e/g=1 d/h/ s->f")
    for name in ("f", "d/e/g", "d/e", "d/h", "d", "."):
        if subprocess.run(["chattr", flag, top / name], check=False, capture_output=True).returncode:
            pytest.skip("the filesystem has no inode flags")
    remove_path(str(top))
    assert not top.exists()


@pytest.mark.parametrize("depth", [15, 16, 17, 18, 33, 34, 700])
def test_deeper_than_descriptors_and_paths_go(depth: int, tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    here = os.open(top, os.O_RDONLY)
    for level in range(depth):
        os.mkdir("1" if level % 2 else "n" * 200, dir_fd=here)
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        deeper = os.open("1" if level % 2 else "n" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    remove_path(str(top))
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_mounted_filesystems_are_not_touched(tmp_path: Path) -> None:
    top = tree(tmp_path / "top", "a=1 m/ f=1")
    script = f"""
mount -t tmpfs none {top}/m; echo keep > {top}/m/keep; chmod 500 {top}/m
{sys.executable} -c 'from unionfs.trees.remove import remove_path; remove_path("{top}")' && exit 9
cat {top}/m/keep; stat -c %a {top}/m
"""
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, timeout=limit(60), check=False
    )
    assert done.stdout.split() == ["keep", "500"], done.stderr


FEW_DESCRIPTORS = 64


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory that goes even if a test leaves a tree in it that is too deep for Python."""
    path = tempfile.mkdtemp()
    os.chmod(path, 0o777)
    yield Path(path)
    subprocess.run(["rm", "-rf", path], check=True)


def _make_deep(top: Path, levels: int, *, mode: int) -> None:
    """`levels` directories, each in the one before, and in each a file and, every 20 levels, two more directories."""
    top.mkdir()
    here = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    for level in range(levels):
        os.mkdir("d", dir_fd=here)
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        if level % 20 == 0:
            os.mkdir("e", dir_fd=here)
            os.mkdir("e/f", dir_fd=here)
        deeper = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.fchmod(here, mode)
        os.close(here)
        here = deeper
    os.close(here)


def _remove_with_few_descriptors(run: Callable[[], None]) -> None:
    highest = max(map(int, os.listdir("/proc/self/fd")))  # the test process has some of its own
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + FEW_DESCRIPTORS, highest + FEW_DESCRIPTORS))
    run()


def test_a_deep_tree_needs_few_descriptors(scratch: Path) -> None:
    _make_deep(scratch / "top", 3000, mode=0o755)
    expect(in_child(partial(_remove_with_few_descriptors, partial(remove_path, str(scratch / "top")))))
    assert os.listdir(scratch) == []


@needs_root
def test_a_deep_locked_tree_of_an_ordinary_user(scratch: Path) -> None:
    top = scratch / "top"

    def make_and_remove() -> None:
        _make_deep(top, 300, mode=0o000)
        remove_path(str(top))

    as_user(1000, 1000, make_and_remove)
    assert os.listdir(scratch) == []


def test_a_daemon_sweeps_a_deep_tree_of_a_dead_one_with_few_descriptors(scratch: Path) -> None:
    work = scratch / "work"
    work.mkdir()
    (work / "live-1-dead").mkdir()
    _make_deep(work / "live-1-dead/t1", 3000, mode=0o755)

    def sweep() -> None:
        fds = FdCache(8)
        Staging(str(work), fds, Branch(str(work), fds, writable=True)).close()

    expect(in_child(partial(_remove_with_few_descriptors, sweep)))
    assert sorted(os.listdir(work)) == ["index", "spare"]
    assert os.listdir(work / "spare") == []


@needs_root
def test_a_directory_that_cannot_be_moved_is_emptied_in_place(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _make_deep(scratch / "top", 40, mode=0o755)

    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(files, "renameat2", refuse)
    remove_path(str(scratch / "top"))
    assert os.listdir(scratch) == []
