"""Space without written data: fallocate(2) in all its modes, holes, lseek(2); and data copied by the kernel."""

from __future__ import annotations

import errno
import os
import subprocess

from tests.mounted.checking import beside, check, fails, needs_fallocate, opened, read, same, write
from tests.mounted.libc import (
    FALLOC_FL_COLLAPSE_RANGE,
    FALLOC_FL_INSERT_RANGE,
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
    fallocate,
)
from tests.mounted.trees import pattern

_BLOCK = 4096
_SIZE = 10 * _BLOCK
_PUNCH = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE


@check(f"f~{_SIZE}")
def ranges_collapse() -> None:
    """fallocate(2), FALLOC_FL_COLLAPSE_RANGE: takes out whole blocks, and the file is so much shorter."""
    needs_fallocate(FALLOC_FL_COLLAPSE_RANGE)
    want = bytearray(pattern("f", _SIZE))
    with opened("f", os.O_RDWR) as fd:
        fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 2 * _BLOCK, 3 * _BLOCK)
        del want[2 * _BLOCK : 5 * _BLOCK]
        same(os.pread(fd, _SIZE, 0), bytes(want))
        fails(errno.EINVAL, fallocate, fd, FALLOC_FL_COLLAPSE_RANGE, 0, 100)


@check(f"f~{_SIZE}")
def ranges_are_inserted() -> None:
    """fallocate(2), FALLOC_FL_INSERT_RANGE: moves the rest back and leaves a hole."""
    needs_fallocate(FALLOC_FL_INSERT_RANGE)
    want = bytearray(pattern("f", _SIZE))
    with opened("f", os.O_RDWR) as fd:
        fallocate(fd, FALLOC_FL_INSERT_RANGE, 2 * _BLOCK, 3 * _BLOCK)
        want[2 * _BLOCK : 2 * _BLOCK] = bytes(3 * _BLOCK)
        same(os.pread(fd, 2 * _SIZE, 0), bytes(want))
        fails(errno.EINVAL, fallocate, fd, FALLOC_FL_INSERT_RANGE, 0, 100)


@check(f"f~{_SIZE} g~{_SIZE}")
def what_cannot_be_done_leaves_the_file_alone() -> None:
    """fallocate(2): EOPNOTSUPP or EINVAL for a mode that does not exist or is not known here; nothing changes."""
    modes = (FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_INSERT_RANGE, FALLOC_FL_ZERO_RANGE | FALLOC_FL_COLLAPSE_RANGE, 1 << 20)
    for mode in modes:
        with opened("f", os.O_RDWR) as fd:
            fails((errno.EOPNOTSUPP, errno.EINVAL), fallocate, fd, mode, 100, 100)
    same(read("f"), pattern("f", _SIZE))
    subprocess.run(["cp", "--sparse=always", "g", "h"], check=True)
    same(read("h"), pattern("g", _SIZE))


@check(f"f~{_SIZE} g~{_SIZE}")
def punching_unaligned_and_over_the_end() -> None:
    """fallocate(2), PUNCH_HOLE: any bytes, also across and behind the end of the file, whose size stays."""
    want = bytearray(pattern("f", _SIZE))
    with opened("f", os.O_RDWR) as fd:
        for start, length in ((1, 1), (_BLOCK - 1, 2), (5000, 9000), (_SIZE - 10, 1 << 20), (1 << 30, _BLOCK)):
            fallocate(fd, _PUNCH, start, length)
            want[start : start + length] = bytes(max(0, min(_SIZE, start + length) - start))
            same(os.pread(fd, 2 * _SIZE, 0), bytes(want), (start, length))
    same(os.stat("f").st_size, _SIZE)


@check(f"f~{_SIZE}")
def zeroing_keeps_the_size_if_asked() -> None:
    """fallocate(2), ZERO_RANGE: extends the file, and with KEEP_SIZE does not; the bytes are zeros either way."""
    needs_fallocate(FALLOC_FL_ZERO_RANGE)
    want = bytearray(pattern("f", _SIZE))
    with opened("f", os.O_RDWR) as fd:
        fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, _SIZE - 100, 1000)
        want[-100:] = bytes(100)
        same(os.pread(fd, 2 * _SIZE, 0), bytes(want))
        fallocate(fd, FALLOC_FL_ZERO_RANGE, 10, _SIZE)
        want[10:] = bytes(_SIZE)
        same(os.pread(fd, 2 * _SIZE, 0), bytes(want))


@check("f=hello")
def reserved_room_is_used_later() -> None:
    """fallocate(2), KEEP_SIZE behind the end: takes room, changes no byte, and writing there works as everywhere."""
    with opened("f", os.O_RDWR) as fd:
        fallocate(fd, FALLOC_FL_KEEP_SIZE, 1 << 20, 1 << 20)
        same(os.fstat(fd).st_size, 5)
        assert os.fstat(fd).st_blocks * 512 >= 1 << 20
        same(os.pread(fd, 100, 0), b"hello")
        os.ftruncate(fd, 5)
        os.pwrite(fd, b"x", (1 << 20) + 5)
        same(os.pread(fd, 10, (1 << 20) - 4), bytes(9) + b"x")


def _holes() -> None:
    with open("empty", "wb"), open("hole", "wb") as hole, open("head", "wb") as head:
        hole.truncate(1 << 20)
        head.truncate(1 << 20)
        head.write(b"x" * _BLOCK)


@check("full~100000", prepare=_holes)
def seeking_at_the_edges() -> None:
    """lseek(2): ENXIO at and behind the end, and for data behind the last; the end of the file is a hole."""
    with opened("full") as fd:
        same(os.lseek(fd, 99_999, os.SEEK_DATA), 99_999)
        same(os.lseek(fd, 0, os.SEEK_HOLE), 100_000)
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            fails(errno.ENXIO, os.lseek, fd, 100_000, whence)
    with opened("empty") as fd:
        fails(errno.ENXIO, os.lseek, fd, 0, os.SEEK_DATA)
        fails(errno.ENXIO, os.lseek, fd, 0, os.SEEK_HOLE)
    with opened("hole") as fd:
        fails(errno.ENXIO, os.lseek, fd, 0, os.SEEK_DATA)
        same(os.lseek(fd, 5000, os.SEEK_HOLE), 5000)
    with opened("head", os.O_RDWR) as fd:
        same(os.lseek(fd, 100, os.SEEK_DATA), 100)
        same(os.lseek(fd, 100, os.SEEK_HOLE), _BLOCK)
        fails(errno.ENXIO, os.lseek, fd, _BLOCK, os.SEEK_DATA)
        os.pwrite(fd, b"y", 1 << 19)
        same(os.lseek(fd, _BLOCK, os.SEEK_DATA), 1 << 19)
        same(os.lseek(fd, 0, os.SEEK_CUR), 1 << 19, "seeking moves the offset")


@check(f"old~{_SIZE} target=x")
def copy_file_range_between_old_and_new() -> None:
    """copy_file_range(2): between a file that was there and a new one, both ways, also after either was changed."""
    write("new", pattern("new", _SIZE))
    for source, target in (("old", "target"), ("new", "old"), ("old", "new")):
        data = read(source)
        with opened(source) as from_fd, opened(target, os.O_RDWR) as to_fd:
            os.lseek(to_fd, 100, os.SEEK_SET)
            os.lseek(from_fd, 50, os.SEEK_SET)
            left = 8000
            while left:
                left -= os.copy_file_range(from_fd, to_fd, left)
            same(os.pread(to_fd, 8000, 100), data[50:8050], (source, target))
            same(os.lseek(to_fd, 0, os.SEEK_CUR), 8100, "both offsets move")
            same(os.lseek(from_fd, 0, os.SEEK_CUR), 8050)
        same(read(source), data)


@check(f"f~{_SIZE} d/")
def copy_file_range_refusals() -> None:
    """copy_file_range(2): EBADF for what is open the wrong way or for appending, EISDIR, EINVAL for what is no file."""
    write("g", b"")
    with opened("f") as reader, opened("g", os.O_WRONLY) as writer, opened("d") as directory:
        fails(errno.EBADF, os.copy_file_range, writer, reader, 10)
        fails(errno.EISDIR, os.copy_file_range, directory, writer, 10)
        with opened("g", os.O_WRONLY | os.O_APPEND) as appender:
            fails(errno.EBADF, os.copy_file_range, reader, appender, 10)
        pipe, end = os.pipe()
        os.write(end, b"x")
        fails(errno.EINVAL, os.copy_file_range, pipe, writer, 1)
        same(os.copy_file_range(reader, writer, 10, offset_src=_SIZE), 0)
    same(read("g"), b"")


@check(f"f~{_SIZE}")
def copying_out_and_in() -> None:
    """cp(1), copy_file_range(2): out of the tree and back, whether it can be done in one or not."""
    outside = beside("copy")
    subprocess.run(["cp", "f", outside], check=True)
    subprocess.run(["cp", "--reflink=auto", outside, "back"], check=True)
    same(read("back"), pattern("f", _SIZE))
    with opened("f") as source, opened(outside, os.O_RDWR) as target:
        try:
            copied = os.copy_file_range(source, target, 100, 0, 50)
        except OSError as failure:
            copied = 0 if failure.errno in (errno.EXDEV, errno.EOPNOTSUPP) else -1
        assert copied >= 0
        same(os.pread(target, copied, 50), pattern("f", _SIZE)[:copied])


@check(f"f~{_SIZE}")
def statfs_tells_of_the_upper() -> None:
    """statvfs(3): sizes and free room are those of the filesystem that new files go to."""
    ours, plain = os.statvfs("f"), os.statvfs(os.environ["BESIDE"])
    same(
        (ours.f_frsize, ours.f_blocks, ours.f_files, ours.f_namemax),
        (plain.f_frsize, plain.f_blocks, plain.f_files, plain.f_namemax),
    )
    same(ours.f_bsize, plain.f_bsize)
    assert abs(ours.f_bavail - plain.f_bavail) <= plain.f_blocks // 10
    with opened("f") as fd:
        same(os.fstatvfs(fd).f_blocks, plain.f_blocks)
