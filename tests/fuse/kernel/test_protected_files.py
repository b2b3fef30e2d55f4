"""Immutable and append-only files: opened, written late, mapped, under other names; flags that new files inherit."""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from tests.fuse.kernel.conftest import MakeMount
from tests.support import machine
from tests.support.timing import wait_until

_WAYS: Final = ("plain", "writeback", "passthrough")
_TRY: Final = r"""
import errno, fcntl, json, os, subprocess, sys

GET, SET = 0x80086601, 0x40086602

def attempt(change):
    try:
        return change() or 'done'
    except OSError as error:
        return errno.errorcode[error.errno]

def opened(name, flags, change=lambda fd: None):
    fd = os.open(name, flags)
    try:
        return change(fd)
    finally:
        os.close(fd)

def appended(fd):
    os.write(fd, b'more')
    os.fsync(fd)

def set_again(name):
    opened(name, os.O_RDONLY, lambda fd: fcntl.ioctl(fd, SET, fcntl.ioctl(fd, GET, bytes(8))))

def by_owner(change, name):
    pid = os.fork()
    if not pid:
        os.setgroups([]), os.setgid(1000), os.setuid(1000)
        os._exit(0 if attempt(lambda: change(name)) == 'done' else 1)
    return ['done', 'refused'][os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])]

os.chdir(sys.argv[1])
found = {}
names = ['i', 'a']
for name in ['new-i', 'new-a']:
    with open(name, 'w') as file:
        file.write('content')
    os.chown(name, 1000, 1000)
    subprocess.run(['chattr', '+' + name[-1], name], check=True)
    names.append(name)
for name in names:
    said = found[name] = {}
    if sys.argv[2] == 'opens':
        for way in os.O_RDONLY, os.O_WRONLY, os.O_RDWR:
            for more in 0, os.O_APPEND, os.O_TRUNC, os.O_APPEND | os.O_TRUNC:
                said[f'open {way} {more:o}'] = attempt(lambda: opened(name, way | more))
    for missing in 'user.none', 'trusted.none', 'system.posix_acl_access':
        said['removexattr ' + missing] = attempt(lambda: os.removexattr(name, missing))
    said['replace attribute'] = attempt(lambda: os.setxattr(name, 'user.none', b'1', os.XATTR_REPLACE))
    said['same flags'] = attempt(lambda: set_again(name))
    said['same flags by owner'] = by_owner(set_again, name)
    said['touch'] = attempt(lambda: os.utime(name))
    said['set times'] = attempt(lambda: os.utime(name, (1, 1)))
    to_end = os.O_WRONLY | os.O_APPEND
    said['preallocate'] = attempt(lambda: opened(name, to_end, lambda fd: os.posix_fallocate(fd, 0, 9)))
    for _ in range(2):
        said['append'] = attempt(lambda: opened(name, to_end, appended))
    said['content'] = open(name).read()
json.dump(found, sys.stdout)
"""


def _chattr(*words: str | Path) -> None:
    subprocess.run(["chattr", *words], check=True)


@pytest.fixture
def lower(scratch: Path) -> Iterator[Path]:
    """A lower with an immutable and an append-only file, and an equal directory `native` beside it."""
    top, native = scratch / "lower", scratch / "native"
    native.mkdir()
    if subprocess.run(["chattr", "+i", native], capture_output=True, check=False).returncode != 0:
        pytest.skip("the filesystem of the branches keeps no flags, or we may not set them")
    _chattr("-i", native)
    try:
        for each in (top, native):
            each.mkdir(exist_ok=True)
            for name in ("i", "a"):
                (each / name).write_text("content")
                os.chown(each / name, 1000, 1000)
                _chattr(f"+{name}", each / name)
        yield top
    finally:
        for each in (top, native, scratch / "upper", scratch / "work"):
            if each.exists():
                subprocess.run(["chattr", "-R", "-f", "-ia", each], capture_output=True, check=False)


def _options(way: str) -> dict[str, Any]:
    if way == "passthrough" and machine.lacks_passthrough():
        pytest.skip(machine.lacks_passthrough())
    return {} if way == "plain" else {way: True}


def _tried(where: Path, what: str) -> dict[str, dict[str, str]]:
    done = subprocess.run([sys.executable, "-c", _TRY, where, what], capture_output=True, text=True, check=True)
    found: dict[str, dict[str, str]] = json.loads(done.stdout)
    return found


def _shows(fd: int, content: bytes) -> bool:
    return os.pread(fd, len(content) + 1, 0) == content


@pytest.mark.parametrize("way", _WAYS)
def test_what_they_refuse(lower: Path, scratch: Path, mount: MakeMount, way: str) -> None:
    union = mount(lower, **_options(way))
    what = "opens" if way != "plain" else "changes"
    native, ours = _tried(scratch / "native", what), _tried(union.path, what)
    assert native["a"]["append"] == native["new-a"]["append"] == "done"
    assert native["i"]["removexattr user.none"] == native["new-i"]["removexattr user.none"] == "EPERM"
    assert ours == native
    assert (lower / "a").read_text() == "content"


@pytest.mark.xfail(
    reason="the kernel opens files without asking the daemon, so the refusal comes at write(2)", strict=True
)
def test_refused_at_open(lower: Path, mount: MakeMount) -> None:
    union = mount(lower)
    with pytest.raises(PermissionError):
        os.close(os.open(union.path / "i", os.O_WRONLY))


@pytest.mark.xfail(reason="the kernel decides by the mode: it asks the daemon for no flags", strict=True)
def test_access(lower: Path, mount: MakeMount) -> None:
    union = mount(lower)
    assert not os.access(union.path / "i", os.W_OK)


@pytest.mark.parametrize("flag", ["i", "a"])
@pytest.mark.parametrize("way", _WAYS)
def test_what_was_written_before(lower: Path, scratch: Path, mount: MakeMount, way: str, flag: str) -> None:
    """Nothing that the page cache holds back is lost when the flag is set: of a file that only a lower has, of a new
    one, and of a mapping. Later changes through the same descriptors are refused, at the latest when they are written
    back, and are shown no longer."""
    (lower / "old").write_text("x" * 9000)
    union = mount(lower, **_options(way))
    (union.path / "new").write_text("x" * 9000)
    for name in ("old", "new"):
        fd = os.open(union.path / name, os.O_RDWR)
        with mmap.mmap(fd, 9000) as mapped:
            mapped[5000:5003] = b"map"
            os.pwrite(fd, b"begin", 0)
            os.pwrite(fd, b"end", 9000)
            _chattr(f"+{flag}", union.path / name)
            expected = b"begin" + b"x" * 4995 + b"map" + b"x" * 3997 + b"end"
            assert (scratch / "upper" / name).read_bytes() == expected
            if way == "passthrough":
                os.close(fd)
                continue
            if way == "writeback":
                assert os.pwrite(fd, b"late", 1) == 4
            with pytest.raises(PermissionError):
                os.fsync(fd) if way == "writeback" else os.pwrite(fd, b"late", 1)
            mapped[0:4] = b"late"
            with pytest.raises(PermissionError):
                mapped.flush()
        wait_until(partial(_shows, fd, expected), "the refused pages are dropped")
        os.close(fd)
        assert (union.path / name).read_bytes() == expected
        assert (scratch / "upper" / name).read_bytes() == expected
        _chattr(f"-{flag}", union.path / name)
        with (union.path / name).open("r+b") as file:
            file.seek(4)
            file.write(b"X")
        assert (union.path / name).read_bytes() == (scratch / "upper" / name).read_bytes() == b"begiX" + expected[5:]


@pytest.mark.parametrize("way", _WAYS)
def test_a_descriptor_that_no_longer_appends(lower: Path, mount: MakeMount, way: str) -> None:
    """The kernel lets O_APPEND be taken from a descriptor of the mount, and a mapping be made."""
    union = mount(lower, **_options(way))
    (union.path / "new-a").write_text("content")
    _chattr("+a", union.path / "new-a")
    for name in ("a", "new-a"):
        reader = os.open(union.path / name, os.O_RDONLY)
        fd = os.open(union.path / name, os.O_RDWR | os.O_APPEND)
        os.write(fd, b"more")
        fcntl.fcntl(fd, fcntl.F_SETFL, 0)
        if way == "writeback":
            assert os.pwrite(fd, b"X", 1) == 1
        with pytest.raises(PermissionError):
            os.fsync(fd) if way == "writeback" else os.pwrite(fd, b"X", 1)
        with mmap.mmap(fd, 7) as mapped:
            mapped[0:1] = b"X"
            with pytest.raises(PermissionError):
                mapped.flush()
        os.close(fd)
        shown = b"content" if (name, way) == ("a", "passthrough") else b"contentmore"
        wait_until(partial(_shows, reader, shown), "the refused pages are dropped")
        os.close(reader)
        assert (union.path / name).read_text() == (union.path.parent / "upper" / name).read_text() == "contentmore"


def test_a_mapping_of_a_protected_file_of_a_lower(lower: Path, mount: MakeMount) -> None:
    """The kernel lets it be made; what is written through it is refused when it is synced, and shown no longer."""
    union = mount(lower)
    for name in ("i", "a"):
        fd = os.open(union.path / name, os.O_RDWR)
        with mmap.mmap(fd, 7) as mapped:
            mapped[0:1] = b"X"
            with pytest.raises(PermissionError):
                mapped.flush()
        wait_until(partial(_shows, fd, b"content"), "the refused page is dropped")
        os.close(fd)
        assert (union.path / name).read_text() == (lower / name).read_text() == "content"
    assert not list((union.path.parent / "upper").glob("i"))


@pytest.mark.parametrize("flag", ["i", "a"])
def test_every_name_of_a_hard_link(lower: Path, scratch: Path, mount: MakeMount, flag: str) -> None:
    """Also names that the upper does not have yet, and it gets them when the union is closed."""
    (lower / "d").mkdir()
    (lower / "one").write_text("content")
    for name in ("two", "d/three", "d/four"):
        os.link(lower / "one", lower / name)
    with (scratch / "other").open("w"):
        pass
    union = mount(lower)
    (union.path / "other").touch()
    if flag == "a":
        _chattr("+a", lower / "one")
        with (union.path / "one").open("a") as file:
            file.write("more")
    else:
        with (union.path / "one").open("a") as file:
            file.write("more")
        _chattr("+i", union.path / "one")
    for name in ("one", "two", "d/three", "d/four"):
        path = union.path / name
        assert path.read_text() == "contentmore"
        for change in (
            path.unlink,
            lambda path=path: path.rename(union.path / "moved"),
            lambda path=path: (union.path / "other").rename(path),
            lambda path=path: os.link(path, union.path / "linked"),
            lambda path=path: path.write_text("other"),
        ):
            with pytest.raises(PermissionError) as refused:
                change()
            assert refused.value.errno == errno.EPERM


def test_other_users_files_inherit_flags(lower: Path, scratch: Path, mount: MakeMount) -> None:
    """As root's do: which ones, and by what, the filesystem says."""
    code = r"""
import fcntl, os, subprocess, sys
os.chdir(sys.argv[1])
os.setgroups([]), os.setgid(1000), os.setuid(1000)
os.close(os.open('d/file', os.O_CREAT | os.O_WRONLY))
os.mkdir('d/dir')
os.close(os.open('d/dir/deeper', os.O_CREAT | os.O_WRONLY))
os.unlink('e/lower')
os.mkdir('e/lower')
print('unnamed', hex(fcntl.ioctl(os.open('d', os.O_TMPFILE | os.O_RDWR), 0x80086601, bytes(8))[0]))
for name in 'd/file', 'd/dir', 'd/dir/deeper', 'e/lower':
    shown = subprocess.run(['lsattr', '-d', name], capture_output=True, text=True, check=True).stdout.split()[0]
    print(name, shown.replace('e', '-'))
"""

    def made(top: Path) -> list[str]:
        done = subprocess.run([sys.executable, "-c", code, top], capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    for top in (lower, scratch / "native"):
        for name in ("d", "e"):
            (top / name).mkdir()
            (top / name).chmod(0o777)
            _chattr("+AdSDc", top / name)
        (top / "e/lower").touch()
    union = mount(lower)
    native = made(scratch / "native")
    assert all("A" in line for line in native[1:]), native
    assert made(union.path) == native
    for each in (scratch / "native", union.path):
        _chattr("=", each / "d")
        for name in ("d/file", "d/dir/deeper", "e/lower"):
            (each / name).rmdir() if name == "e/lower" else (each / name).unlink()
        (each / "d/dir").rmdir()
        (each / "e/lower").touch()
    native = made(scratch / "native")
    assert "A" not in native[1]
    assert made(union.path) == native
