"""Copies between directories given by descriptors."""

from __future__ import annotations

import errno
import io
import os
import tarfile
from pathlib import Path

import pytest

from unionfs.containers import tarstreams
from unionfs.containers.copy import Copy, of_the_kernel


def test_a_device_that_may_not_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "mknod", refuse)
    from_fd, to_fd = (os.open(path, os.O_PATH | os.O_DIRECTORY) for path in ("/dev", tmp_path))
    try:
        with pytest.raises(PermissionError) as refused:
            Copy().run(from_fd, "null", to_fd, "new")
    finally:
        os.close(from_fd)
        os.close(to_fd)
    assert (refused.value.errno, refused.value.filename) == (errno.EPERM, str(tmp_path / "new"))


def test_an_error_names_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of files that cannot be read, which are opened by descriptors."""
    (tmp_path / "tree/d").mkdir(parents=True)
    (tmp_path / "tree/d/f").write_text("f")

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(tarstreams, "_data", refuse)
            with pytest.raises(OSError, match="'tree/d/f'"):
                tarstreams.write(fd, "tree", io.BytesIO(), "tree")
        monkeypatch.setattr("unionfs.containers.copy._data", refuse)
        with pytest.raises(OSError, match="'tree/d/f'"):
            Copy((os.getuid(), os.getgid())).run(fd, "tree", fd, "new")
    finally:
        os.close(fd)


def test_directories_that_are_left_empty(tmp_path: Path) -> None:
    """Unless one is copied by its name; of this machine those are /proc, /sys and /dev."""
    for name in ("tree/proc/1", "tree/etc/1"):
        (tmp_path / name).mkdir(parents=True)
    st = (tmp_path / "tree/proc").stat()
    left_empty = frozenset({(st.st_dev, st.st_ino)})
    owner = (os.getuid(), os.getgid())
    fd, root_fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY), os.open("/", os.O_PATH | os.O_DIRECTORY)
    try:
        assert of_the_kernel(fd) == frozenset()
        proc = os.stat("/proc")
        assert (proc.st_dev, proc.st_ino) in of_the_kernel(root_fd)
        Copy(owner, left_empty).run(fd, "tree", fd, "new")
        assert sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "new").rglob("*")) == [
            "new/etc",
            "new/etc/1",
            "new/proc",
        ]
        for name, expected in (("tree", ["tree", "tree/etc", "tree/etc/1", "tree/proc"]), ("tree/proc", ["x", "x/1"])):
            sink = io.BytesIO()
            tarstreams.write(fd, name, sink, "tree" if name == "tree" else "x", left_empty)
            sink.seek(0)
            with tarfile.open(fileobj=sink) as archive:
                assert archive.getnames() == expected
    finally:
        os.close(fd)
        os.close(root_fd)
