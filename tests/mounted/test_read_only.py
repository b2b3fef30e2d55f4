"""A union without an upper is a read-only filesystem: EROFS for every change (mount(2), MS_RDONLY), all else as usual.

The control is a plain directory under a read-only bind mount.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mounted import trees
from tests.mounted.checking import fails, names, opened, read, same
from tests.mounted.libc import RENAME_EXCHANGE, renameat2
from tests.mounted.mounted_subject import MountedSubject
from tests.mounted.subjects import NATIVE, Subject, unavailable

_TREE = "f=hello d/g=1 d/e/ l->f p| h==f x:755=#!/bin/sh"

_SUBJECTS = [
    Subject(NATIVE, "root", "plain"),
    *(Subject("kernel", who, "plain") for who in ("root", "user", "userns")),
    *(Subject("pyfuse3", who, "plain") for who in ("root", "user")),
]


def _build(top: Path) -> None:
    trees.make(trees.parse(_TREE), top)


def _every_change() -> list[Callable[[], object]]:
    return [
        lambda: os.open("f", os.O_WRONLY),
        lambda: os.open("f", os.O_RDWR),
        lambda: os.open("f", os.O_RDONLY | os.O_TRUNC),
        lambda: os.open("new", os.O_WRONLY | os.O_CREAT),
        lambda: os.open("d", os.O_RDWR | os.O_TMPFILE),
        lambda: os.truncate("f", 0),
        lambda: os.chmod("f", 0o600),
        lambda: os.chmod("d", 0o700),
        lambda: os.chown("f", os.getuid(), os.getgid()),
        lambda: os.utime("f", (1, 1)),
        lambda: os.setxattr("f", "user.x", b"1"),
        lambda: os.removexattr("f", "user.x"),
        lambda: os.unlink("f"),
        lambda: os.unlink("l"),
        lambda: os.rmdir("d/e"),
        lambda: os.mkdir("new"),
        lambda: os.symlink("x", "new"),
        lambda: os.mkfifo("new"),
        lambda: os.link("f", "new"),
        lambda: os.rename("f", "new"),
        lambda: os.rename("d", "new"),
        lambda: renameat2("f", "d", RENAME_EXCHANGE),
    ]


def _refuses_every_change() -> None:
    for change in _every_change():
        fails(errno.EROFS, change)
    assert not os.access("f", os.W_OK)
    assert os.statvfs(".").f_flag & os.ST_RDONLY


def _reads_as_usual() -> None:
    same(read("f"), b"hello")
    same(read("d/g"), b"1")
    same(os.readlink("l"), "f")
    same(names(), ["d", "f", "h", "l", "p", "x"])
    same(os.stat("f").st_nlink, 2)
    same(os.stat("f").st_ino, os.stat("h").st_ino)
    same(subprocess.run(["./x"], check=False).returncode, 0)
    fails(errno.ENOENT, os.stat, "nothing")
    fails(errno.EEXIST, os.open, "f", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    with opened("f") as fd:
        os.fsync(fd)


def _case(subject: Subject) -> object:
    marks = [pytest.mark.transport(subject.transport), pytest.mark.runs_as(subject.runs_as)]
    return pytest.param(subject, id=str(subject), marks=marks)


@pytest.mark.parametrize("subject", [_case(subject) for subject in _SUBJECTS])
def test_a_union_without_upper_is_read_only(subject: Subject, scratch: Path, request: pytest.FixtureRequest) -> None:
    if reason := unavailable(subject):
        pytest.skip(reason)
    user = request.getfixturevalue("root_user" if subject.who == "root" else "ordinary_user")
    with MountedSubject(subject, user, scratch / "stand", read_only=True, mounted=False) as stand:
        branch = stand.merged if subject.is_native else stand.lowers[0]
        stand.agent.call(_build, branch)
        stand.mount()
        before = stand.agent.call(trees.snapshot, branch)
        stand.run(_reads_as_usual)
        stand.run(_refuses_every_change)
        merged = stand.run(trees.snapshot, ".")
        assert trees.differences(before, merged, ignore=lambda field, line: field == "ino") == []
        assert stand.complaints() == []
        stand.unmount()
        assert trees.differences(before, stand.agent.call(trees.snapshot, branch)) == []
