"""After the union is closed, the upper has every name of its files, also when the daemon before was killed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.core.stack import Stack
from unionfs.core import complete, hardlinks
from unionfs.core.attrs import ROOT
from unionfs.core.union import Union

MakeStack = Callable[..., Stack]


def _names(stack: Stack) -> dict[str, tuple[int, str]]:
    """Regular files of the upper: path -> how many names it has there and in the index, content."""
    assert stack.upper is not None
    found = {}
    for path in sorted(stack.upper.rglob("*")):
        if path.is_file() and not path.name.startswith(".wh."):
            found[str(path.relative_to(stack.upper))] = (path.stat().st_nlink, path.read_text())
    return found


def _kill(stack: Stack) -> None:
    """As after kill -9: what the daemon has done stays, and it tidies nothing up."""
    killed = stack.base / "killed"
    killed.mkdir()
    subprocess.run(["cp", "-a", stack.base / "upper", stack.base / "work", killed], check=True)
    stack.close()
    for name in ("upper", "work"):
        shutil.rmtree(stack.base / name)
        (killed / name).rename(stack.base / name)
    killed.rmdir()


@pytest.mark.parametrize("caching", [False, True])
def test_every_name_is_in_the_upper(make: MakeStack, caching: bool) -> None:
    stack = make("a=1 d/b==a d/e/c==a other=5", "d/x=9 y=8", caching=caching)
    stack.u.write("a", 0, b"2")
    stack.u.chmod("a", 0o751)
    stack.close()
    assert _names(stack) == {"a": (4, "2"), "d/b": (4, "2"), "d/e/c": (4, "2")}
    assert hardlinks.is_complete(str(stack.work))
    assert stack.u.stat("d/b").nlink == 3
    assert stack.u.stat("d/b").mode & 0o777 == 0o751


def test_names_that_were_removed_or_replaced_stay_so(make: MakeStack) -> None:
    stack = make("a=1 b==a d/c==a e/f==a e/g==a other=5")
    stack.u.write("d/c", 0, b"2")
    stack.u.unlink("a")
    stack.u.rename("other", "b")
    stack.u.unlink("d/c")
    stack.close()
    assert _names(stack) == {"b": (1, "5"), "e/f": (3, "2"), "e/g": (3, "2")}
    assert set(stack.u.names("")) == {b"b", b"d", b"e"}
    assert stack.u.stat("e/f").nlink == 2


def test_names_below_renamed_directories(make: MakeStack) -> None:
    stack = make("g=old d/f==g d/k/h==g")
    stack.u.rename("d", "e")
    stack.u.write("g", 0, b"new")
    stack.close()
    assert _names(stack) == {"g": (4, "new"), "e/f": (4, "new"), "e/k/h": (4, "new")}
    assert [stack.u.read(name) for name in ("g", "e/f", "e/k/h")] == [b"new"] * 3


def test_names_in_several_layers_and_hidden_ones(make: MakeStack) -> None:
    stack = make("d/.wh.hidden top=1", "d/hidden=1 d/seen==d/hidden low==d/hidden")
    os.link(stack.lowers[1] / "low", stack.lowers[0] / "also")  # as `cp -al` makes layers
    stack.watch()
    stack.u.write("low", 0, b"2")
    assert stack.u.stat("also").nlink == 4
    stack.close()
    assert _names(stack) == {"also": (4, "2"), "d/seen": (4, "2"), "low": (4, "2")}
    assert hardlinks.is_complete(str(stack.work)), "which counts the hidden name"
    assert stack.u.stat("also").nlink == 4
    for name in ("also", "d/seen", "low"):
        stack.u.unlink(name)
    stack.remount()
    assert list(stack.work.glob("index/*")) == []


def test_all_kinds(make: MakeStack) -> None:
    stack = make("s->to d/t==s p<fifo>:0600 d/q==p")
    stack.u.utime("s", 5, 5)
    stack.u.chmod("p", 0o640)
    stack.close()
    assert stack.upper is not None
    for one, other in (("s", "d/t"), ("p", "d/q")):
        assert (stack.upper / one).lstat().st_ino == (stack.upper / other).lstat().st_ino


def test_after_a_kill(make: MakeStack) -> None:
    stack = make("g=old d/f==g e/h==g")
    stack.u.write("g", 0, b"new")
    stack.u.unlink("e/h")
    _kill(stack)
    assert _names(stack) == {"g": (2, "new")}
    assert not hardlinks.is_complete(str(stack.work))
    assert complete.complete_upper(stack.options)
    assert _names(stack) == {"g": (3, "new"), "d/f": (3, "new")}
    assert hardlinks.is_complete(str(stack.work))


def test_a_synced_root_is_complete_and_goes_on(make: MakeStack) -> None:
    stack = make("g=old d/f==g e/h==g", caching=True)
    stack.u.write("g", 0, b"new")
    before = {name: stack.u.stat(name) for name in ("g", "d/f", "e/h")}
    stack.union.fsync(ROOT, False)
    assert _names(stack) == {"g": (4, "new"), "d/f": (4, "new"), "e/h": (4, "new")}
    for name, was in before.items():
        now = stack.u.stat(name)
        assert (now.ino, now.nlink, now.mtime_ns) == (was.ino, was.nlink, was.mtime_ns)
    stack.u.unlink("d/f")
    stack.u.write("e/h", 0, b"xxx")
    assert stack.u.read("g") == b"xxx"
    stack.remount()
    assert set(stack.u.names("d")) == set()
    assert stack.u.stat("g").nlink == 2


def test_nothing_is_done_beside_another_daemon(make: MakeStack) -> None:
    stack = make("g=old d/f==g")
    stack.u.write("g", 0, b"new")
    other = Union(stack.options)
    other.close()
    assert _names(stack) == {"g": (2, "new")}
    assert not complete.complete_upper(stack.options, patience_s=0)
    stack.close()
    assert _names(stack) == {"g": (3, "new"), "d/f": (3, "new")}


def test_a_copy_of_the_upper_without_its_work_directory(make: MakeStack, tmp_path: Path) -> None:
    stack = make("g=old d/f==g")
    stack.u.write("g", 0, b"new")
    stack.close()
    shutil.rmtree(stack.work)
    stack.work.mkdir()
    assert [stack.u.read(name) for name in ("g", "d/f")] == [b"new"] * 2


def test_an_upper_as_the_next_lower(make: MakeStack) -> None:
    stack = make("g=old d/f==g")
    stack.u.write("g", 0, b"new")
    stack.restack()
    assert [stack.u.read(name) for name in ("g", "d/f")] == [b"new"] * 2
    stack.u.write("d/f", 0, b"two")
    assert stack.u.read("g") == b"two"


def test_a_union_that_outlives_another_one_links_nothing(make: MakeStack) -> None:
    """As a daemon whose union was unmounted lazily: what it remembers is not true any more."""
    stack = make("a=old b==a c==a")
    stack.u.write("a", 0, b"new")
    second = Union(stack.u.union.options)
    second.unlink(ROOT, b"a")
    second.unlink(ROOT, b"c")
    second.close()
    assert not complete.complete(stack.u.union._tree)
    stack.close()
    assert list(stack.u.names("")) == [b"b"]
    assert stack.u.read("b") == b"new"


@pytest.mark.parametrize("flag", ["a", "i"])
def test_names_of_protected_files(make: MakeStack, flag: str) -> None:
    """link(2) is refused while the flag is set; afterwards the file has it again."""
    stack = make("a=1 d/b==a", "d/x=9")
    assert stack.upper is not None
    chattr = ["chattr", f"+{flag}", os.fspath(stack.upper / "a")]
    stack.u.write("a", 1, b"2")
    if subprocess.run(chattr, capture_output=True, check=False).returncode != 0:
        pytest.skip("the filesystem of the branches keeps no flags, or we may not set them")
    try:
        for change in (stack.u.unlink, lambda name: stack.u.rename(name, "moved")):
            with pytest.raises(PermissionError):
                change("d/b")
        with pytest.raises(PermissionError):
            stack.u.rename("d/x", "d/b")
        stack.close()
        assert _names(stack) == {"a": (3, "12"), "d/b": (3, "12")}
        shown = subprocess.run(["lsattr", stack.upper / "d/b"], capture_output=True, text=True, check=True).stdout
        assert flag in shown.split()[0]
    finally:
        subprocess.run(["chattr", "-R", "-f", f"-{flag}", stack.upper], check=True)
