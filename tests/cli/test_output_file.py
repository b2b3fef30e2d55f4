"""`-o FILE`: a regular file is replaced whole or left unchanged; other files are written in place."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from unionfs.output_file import OutputFile


def write(path: str, data: bytes) -> None:
    with OutputFile(path) as written:
        written.file.write(data)


def test_a_file_is_replaced_where_a_link_leads(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    for name in ("new", "file", "link"):
        write(str(tmp_path / name), name.encode())
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "new": "new",
        "file": "link",
        "link": "link",
    }
    assert (tmp_path / "link").is_symlink()


def test_a_failure_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(ZeroDivisionError), OutputFile(str(tmp_path / "file")) as written:
        written.file.write(bytes(1 // 0))
    with OutputFile(str(tmp_path / "file")) as written:
        written.file.write(b"new")
        written.abandon()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"file": "old"}


def test_a_pipe_and_a_device_stay(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write(str(tmp_path / "pipe"), b"through")
    reader.join()
    assert read == [b"through"]
    if os.geteuid() == 0:
        os.mknod(tmp_path / "null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        write(str(tmp_path / "null"), b"away")
        assert stat.S_ISCHR(os.lstat(tmp_path / "null").st_mode)
    assert stat.S_ISFIFO(os.lstat(tmp_path / "pipe").st_mode)


def test_a_descriptor_is_written_to(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    write(f"/proc/self/fd/{writer}", b"through")
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == b"through"
