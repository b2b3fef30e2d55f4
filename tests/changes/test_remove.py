"""Trees that resist removal: too deep for any path, locked, full of links, partly somebody else's mount."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.core.trees import tree
from unionfs.changes.remove import remove_path


def test_locked_directories_and_links(tmp_path: Path) -> None:
    outside = tree(tmp_path / "outside", "keep=1")
    top = tree(tmp_path / "top", f"a/b/c=1 a/b/:0000 a/:0500 l->{outside} d/e/f=1 p<fifo> ./:0300")
    remove_path(str(top))
    assert not top.exists()
    assert (outside / "keep").exists()


def test_what_is_not_there_and_what_is_no_directory(tmp_path: Path) -> None:
    remove_path(str(tmp_path / "nothing"))
    (tmp_path / "l").symlink_to(tree(tmp_path / "d", "keep=1"))
    remove_path(str(tmp_path / "l"))
    assert os.listdir(tmp_path) == ["d"]
    assert (tmp_path / "d/keep").exists()


@pytest.mark.parametrize("depth", [63, 64, 65, 66, 700])
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
{sys.executable} -c 'from unionfs.changes.remove import remove_path; remove_path("{top}")' && exit 9
cat {top}/m/keep; stat -c %a {top}/m
"""
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split() == ["keep", "500"], done.stderr
