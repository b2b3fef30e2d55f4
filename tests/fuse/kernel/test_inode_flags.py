"""Immutable and append-only files and directories of a lower, beside what the branch's own filesystem says."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.fuse.kernel.conftest import MakeMount

_PROTECTED: Final = ("i", "a", "i-dir", "a-dir")
_TRY: Final = r"""
import errno, fcntl, json, os, shutil, sys

def opened(name, flags, change):
    fd = os.open(name, flags)
    try:
        change(fd)
    finally:
        os.close(fd)

def in_directory(make):
    def attempt(name):
        make(name + '/new')
    return attempt

FILE = {
    'read': lambda f: open(f).read(),
    'write': lambda f: opened(f, os.O_WRONLY, lambda fd: os.write(fd, b'x')),
    'write amid': lambda f: opened(f, os.O_RDWR, lambda fd: os.pwrite(fd, b'x', 1)),
    'empty': lambda f: os.close(os.open(f, os.O_WRONLY | os.O_TRUNC)),
    'truncate': lambda f: os.truncate(f, 1),
    'grow': lambda f: os.truncate(f, 100),
    'chmod': lambda f: os.chmod(f, 0o600),
    'chown': lambda f: os.chown(f, 1, 1),
    'touch': lambda f: os.utime(f),
    'times': lambda f: os.utime(f, (1, 1)),
    'setxattr': lambda f: os.setxattr(f, 'user.x', b'1'),
    'removexattr': lambda f: os.removexattr(f, 'user.had'),
    'link': lambda f: os.link(f, f + '-link'),
    'rename': lambda f: os.rename(f, f + '-renamed'),
    'replace': lambda f: (open(f + '-new', 'w').close(), os.rename(f + '-new', f)),
    'exchange': lambda f: exchange(f, f + '-new'),
    'unlink': lambda f: os.unlink(f),
    'append': lambda f: opened(f, os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, b'more')),
    'append twice': lambda f: opened(f, os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, b'more')),
    'content': lambda f: open(f).read(),
    'unlink then': lambda f: os.unlink(f),
}
DIRECTORY = {
    'list': lambda d: sorted(os.listdir(d)),
    'rename one in it': lambda d: os.rename(d + '/f', d + '/g'),
    'move one out': lambda d: os.rename(d + '/f', d + '-moved'),
    'unlink one in it': lambda d: os.unlink(d + '/f'),
    'rmdir one in it': lambda d: os.rmdir(d + '/s'),
    'replace one in it': lambda d: (open(d + '-new', 'w').close(), os.rename(d + '-new', d + '/f')),
    'chmod': lambda d: os.chmod(d, 0o700),
    'chown': lambda d: os.chown(d, 1, 1),
    'setxattr': lambda d: os.setxattr(d, 'user.x', b'1'),
    'rename': lambda d: os.rename(d, d + '-renamed'),
    'rmdir': lambda d: os.rmdir(d),
    'change one in it': lambda d: open(d + '/f', 'a').write('more'),
    'make deeper': lambda d: os.mkdir(d + '/s/t'),
    'unlink one after that': lambda d: os.unlink(d + '/f'),
    'file': in_directory(lambda f: os.close(os.open(f, os.O_CREAT | os.O_EXCL | os.O_WRONLY))),
    'directory': in_directory(lambda f: os.mkdir(f + '-d')),
    'symlink': in_directory(lambda f: os.symlink('x', f + '-s')),
    'hard link': lambda d: os.link(d + '-beside', d + '/link'),
    'move one in': lambda d: os.rename(d + '-beside', d + '/in'),
    'unnamed': lambda d: os.close(os.open(d, os.O_TMPFILE | os.O_RDWR)),
    'list again': lambda d: sorted(os.listdir(d)),
}

def exchange(a, b):
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    open(b, 'w').close()
    if libc.renameat2(-100, a.encode(), -100, b.encode(), 2) < 0:
        raise OSError(ctypes.get_errno(), 'renameat2')

os.chdir(sys.argv[1])
found = {}
for name in 'i', 'a', 'i-dir', 'a-dir':
    for what, change in (DIRECTORY if name.endswith('dir') else FILE).items():
        try:
            result = change(name)
            found[name + ': ' + what] = result if isinstance(result, (str, list)) else 'done'
        except OSError as error:
            found[name + ': ' + what] = errno.errorcode[error.errno]
json.dump(found, sys.stdout)
"""


def _chattr(*words: str | Path) -> None:
    subprocess.run(["chattr", *words], check=True)


def _flags(path: Path) -> str:
    """The letters of lsattr(1) without `e`, which is about how ext4 keeps the data."""
    shown = subprocess.run(["lsattr", "-d", path], capture_output=True, text=True, check=True).stdout.split()[0]
    return "".join(sorted(shown.replace("-", "").replace("e", "").replace("I", "")))


def _make(top: Path) -> None:
    for name in ("i", "a"):
        (top / name).write_text("content")
        subprocess.run(["setfattr", "-n", "user.had", "-v", "1", top / name], check=True)
    for name in ("i-dir", "a-dir"):
        (top / name / "s").mkdir(parents=True)
        (top / name / "f").write_text("f")
        (top / f"{name}-beside").write_text("beside")
    for name in _PROTECTED:
        _chattr(f"+{name[0]}", top / name)


def _release(top: Path) -> None:
    for name in _PROTECTED:
        for path in top.glob(f"{name}*"):
            if not path.is_symlink():
                _chattr("-ia", path)


@pytest.fixture
def lower(scratch: Path) -> Iterator[Path]:
    """A lower with an immutable and an append-only file and directory, and an equal directory `native` beside it."""
    top, native = scratch / "lower", scratch / "native"
    for each in (top, native):
        each.mkdir()
    if subprocess.run(["chattr", "+i", native], capture_output=True, check=False).returncode != 0:
        pytest.skip("the filesystem of the branches keeps no flags, or we may not set them")
    _chattr("-i", native)
    try:
        for each in (top, native):
            _make(each)
        yield top
    finally:
        for each in (top, native, scratch / "upper"):
            if each.exists():
                _release(each)


def _tried(where: Path) -> dict[str, object]:
    done = subprocess.run([sys.executable, "-c", _TRY, where], capture_output=True, text=True, check=True)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_what_they_forbid(lower: Path, scratch: Path, mount: MakeMount) -> None:
    union = mount(lower)
    native, ours = _tried(scratch / "native"), _tried(union.path)
    assert native["i: write"] == native["i-dir: file"] == "EPERM"
    assert native["a: append"] == native["a-dir: file"] == "done"
    assert ours == native
    assert (lower / "a").read_text() == "content"


def test_what_they_forbid_when_set_through_the_union(lower: Path, scratch: Path, mount: MakeMount) -> None:
    """A directory with lower content still takes copies, so what is in it can be changed."""
    for each in (lower, scratch / "native"):
        _release(each)
    union = mount(lower)
    for each in (union.path, scratch / "native"):
        for name in _PROTECTED:
            _chattr(f"+{name[0]}", each / name)
            assert _flags(each / name) == name[0]
    native, ours = _tried(scratch / "native"), _tried(union.path)
    assert native["i-dir: change one in it"] == native["a-dir: make deeper"] == "done"
    assert native["i-dir: file"] == native["a-dir: unlink one in it"] == "EPERM"
    assert ours == native
    assert (lower / "i-dir/f").read_text() == "f"


def test_flags_are_shown_and_copied_up(lower: Path, scratch: Path, mount: MakeMount) -> None:
    """Also by statx(2). What is copied up keeps the flags that the upper can have."""
    for name, flags in (("f", "+sSdA"), ("d", "+dAD"), ("empty", "+dA")):
        (lower / name).mkdir() if name == "d" else (lower / name).write_text("" if name == "empty" else "x")
        _chattr(flags, lower / name)
    union = mount(lower)
    for name in (*_PROTECTED, "f", "d", "empty"):
        assert _flags(union.path / name) == _flags(lower / name), name
    for name in ("f", "d", "empty"):
        (union.path / name).chmod(0o750)
        assert (scratch / "upper" / name).exists()
        assert _flags(scratch / "upper" / name) == _flags(union.path / name) == _flags(lower / name), name
    with (union.path / "a").open("a") as file:
        file.write("more")
    (union.path / "i-dir/s/t").mkdir()
    for name in ("a", "i-dir"):
        assert (scratch / "upper" / name).exists()
        assert _flags(union.path / name) == _flags(lower / name), name


def test_flags_can_be_cleared_through_the_union(lower: Path, mount: MakeMount) -> None:
    union = mount(lower)
    for name in ("i", "i-dir"):
        assert subprocess.run(["chattr", "+d", union.path / name], capture_output=True, check=False).returncode != 0
    (union.path / "i-dir/s/t").mkdir()
    for name in _PROTECTED:
        _chattr(f"-{name[0]}", union.path / name)
        assert _flags(union.path / name) == ""
    (union.path / "i").write_text("new")
    (union.path / "a").write_text("new")
    for name in ("i-dir", "a-dir"):
        (union.path / name / "f").unlink()
        (union.path / name / "new").touch()
    assert _flags(lower / "i") == _flags(lower / "i-dir") == "i"
    _chattr("+a", union.path / "i")
    with (union.path / "i").open("a") as file:
        file.write("er")
    assert (union.path / "i").read_text() == "newer"
    with pytest.raises(PermissionError) as refused:
        (union.path / "i").write_text("newest")
    assert refused.value.errno == errno.EPERM


def test_pages_reach_an_append_only_file(lower: Path, mount: MakeMount) -> None:
    """With --writeback the kernel writes whole pages, which begin before what was appended."""
    union = mount(lower, writeback=True)
    for text in ("more", "and more"):
        with (union.path / "a").open("a") as file:
            file.write(text)
            file.flush()
            subprocess.run(["sync", union.path / "a"], check=True)
    assert (union.path.parent / "upper/a").read_text() == "contentmoreand more"
