"""The union as an ordinary user's daemon: no capability helps, so modes and owners bite.

The kernel has checked the caller's rights when a request arrives (`default_permissions`); what the daemon may not do on
the branches then, though the caller may, it has to find a way for, or refuse whole. Each test runs as nobody.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.core.children import as_user
from tests.core.conftest import needs_root
from tests.core.drivers import errno_of
from tests.core.snapshots import differences, merged, snapshot
from tests.core.stack import Stack, Whiteout

pytestmark = needs_root

NOBODY = 65534

Run = Callable[[Callable[[Path], None]], None]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Call a function as nobody with a directory that is nobody's."""
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(parent.stat().st_mode | 0o011)

    def start(function: Callable[[Path], None]) -> None:
        os.umask(0)
        as_user(NOBODY, NOBODY, lambda: function(home))

    return start


@pytest.mark.parametrize("caching", [False, True])
@pytest.mark.parametrize("perm", [0o400, 0o200, 0o000])
def test_a_file_made_with_a_mode_that_forbids_using_it(run: Run, perm: int, caching: bool) -> None:
    """open(2): the mode of a new file is for later opens; `install -m 444` and git write such files."""

    def test(home: Path) -> None:
        stack = Stack(home / "s", "", caching=caching)
        stack.u.create("f", perm)
        assert stack.u.write("f", 0, b"data") == 4
        assert stack.u.read("f") == b"data"
        assert stat.S_IMODE(stack.u.stat("f").mode) == perm
        stack.u.truncate("f", 2)
        assert stack.remount().read("f") == b"da"
        assert stat.S_IMODE(stack.u.stat("f").mode) == perm
        stack.finish()

    run(test)


@pytest.mark.parametrize("perm", [0o555, 0o500])
def test_changing_a_file_in_a_directory_that_may_not_be_written(run: Run, perm: int, whiteout: Whiteout) -> None:
    """The file may be written, its directory not: copy-up has to put it there all the same."""

    def test(home: Path) -> None:
        stack = Stack(home / "s", f"d/:{perm:04o} d/f=1 d/g==d/f d/e/:{perm:04o} d/e/h=2 d/l->x", whiteout=whiteout)
        before = snapshot(stack.u)
        stack.u.write("d/e/h", 0, b"3")
        stack.u.utime("d/l", 1, 2)
        stack.u.write("d/f", 0, b"4")
        stack.u.chmod("d/e", perm)
        stack.remount()
        assert merged(stack.u) == f"d/:{perm:04o} d/e/:{perm:04o} d/e/h=3 d/f=4 d/g==d/f d/l->x@0.000000002"
        assert snapshot(stack.u)[b"d"] == before[b"d"]
        for path in (b"d", b"d/e"):
            stack.u.chmod(path, 0o755)
        stack.finish()

    run(test)


def test_a_lower_file_of_ones_own_that_may_not_be_read(run: Run) -> None:
    """Natively its mode could be changed first; but a lower is never written, so what needs a copy is refused."""

    def test(home: Path) -> None:
        stack = Stack(home / "s", "f=data:0000 g=more:0200 d/")
        before = {path: stack.u.stat(path) for path in "fgd"}
        changes: list[Callable[[], None]] = [
            lambda: stack.u.rename("f", "h"),
            lambda: stack.u.chmod("f", 0o600),
            lambda: stack.u.link("f", "d/f"),
            lambda: stack.u.truncate("g", 2),
        ]
        assert [errno_of(change) for change in changes] == [errno.EACCES] * 4
        assert before == {path: stack.u.stat(path) for path in "fgd"}
        assert stack.u.names("d") == {}
        stack.u.truncate("g", 0)
        stack.u.unlink("f")
        stack.u.chmod("g", 0o600)
        assert merged(stack.remount()) == "d/ g:0600"
        stack.finish()

    run(test)


def test_files_of_others_are_never_given_away(run: Run, tmp_path: Path) -> None:
    """A lower file of root's that anybody may write: its copy cannot be root's, so it is refused, not made ours."""
    for name, perm in (("open", 0o666), ("closed", 0o600)):
        path = tmp_path / "home" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("root's")
        path.chmod(perm)

    def test(home: Path) -> None:
        (home / "s/lower0").mkdir(parents=True)
        stack = Stack(home / "s", "mine=1")
        for name in ("open", "closed"):
            os.rename(home / name, home / "s/lower0" / name)
        stack.watch()
        before = snapshot_of_readable(stack)
        assert errno_of(lambda: stack.u.write("open", 0, b"x")) in (errno.EPERM, errno.EACCES)
        assert errno_of(lambda: stack.u.write("closed", 0, b"x")) in (errno.EPERM, errno.EACCES)
        assert errno_of(lambda: stack.u.chown("mine", 0, 0)) == errno.EPERM
        assert snapshot_of_readable(stack) == before
        for name in ("open", "closed"):
            stack.u.unlink(name)
        assert merged(stack.remount()) == "mine=1"
        stack.finish()

    run(test)


def snapshot_of_readable(stack: Stack) -> object:
    names = stack.u.names("")
    return [(name, stack.u.stat(name)[:5]) for name in sorted(names)], stack.u.read("open")


def test_marks_without_privileges(run: Run, whiteout: Whiteout) -> None:
    """No CAP_MKNOD, no trusted.*: removed, renamed and made again all the same, and read back."""

    def test(home: Path) -> None:
        stack = Stack(home / "s", f"d/a=1 d/s/b=2 e/x f=3 g=4 {'n' * 255}=5", whiteout=whiteout)
        stack.u.unlink("f")
        stack.u.unlink("n" * 255)
        stack.u.rename("d", "r")
        stack.u.mkdir("d", 0o700)
        stack.u.unlink("e/x")
        stack.u.rmdir("e")
        stack.u.mkdir("e")
        stack.u.rename("g", "f")
        for again in (stack.remount, stack.restack):
            assert merged(stack.u) == "d/:0700 e/ f=4 r/a=1 r/s/b=2"
            again()
        assert merged(stack.u) == "d/:0700 e/ f=4 r/a=1 r/s/b=2"
        stack.finish()

    run(test)


def test_copy_up_keeps_what_can_be_kept(run: Run) -> None:
    def test(home: Path) -> None:
        stack = Stack(home / "s", "d/:0711@5 d/f=1:0604@7{user.k=v} d/l->x p<fifo>:0620")
        before = snapshot(stack.u)
        for path in ("d/f", "d/l", "p"):
            attrs = stack.u.stat(path)
            stack.u.utime(path, attrs.atime_ns, attrs.mtime_ns)
        assert differences(before, snapshot(stack.remount())) == ""
        stack.finish()

    run(test)
