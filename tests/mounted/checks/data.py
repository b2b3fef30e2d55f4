"""Moving data without read and write: truncate, holes, fallocate, sendfile, splice, copy_file_range."""

from __future__ import annotations

import errno
import os
import subprocess

from tests.mounted.checking import check, fails, needs_fallocate, opened, read, read_fd, same, write
from tests.mounted.libc import (
    FALLOC_FL_COLLAPSE_RANGE,
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
    fallocate,
)
from tests.mounted.trees import STAMP, pattern

_MIB = 1 << 20


def _make_sparse() -> None:
    """A file of 8 MiB + 5 with data at 0, at 3 MiB and at the end, holes between."""
    with open("sparse", "wb") as file:
        file.write(pattern("head", 4096))
        file.seek(3 * _MIB)
        file.write(pattern("middle", 4096))
        file.seek(8 * _MIB)
        file.write(b"tail!")


@check("f~10000 g~10000")
def truncate_down_and_up() -> None:
    """truncate(2): a shorter file loses its end, and what comes back when it grows again is zeros."""
    head = pattern("f", 10_000)[:3000]
    os.truncate("f", 3000)
    same(read("f"), head)
    os.truncate("f", 9000)
    same(read("f"), head + bytes(6000))
    with opened("g", os.O_RDWR) as fd:
        os.ftruncate(fd, 100)
        same(os.fstat(fd).st_size, 100)
        os.ftruncate(fd, 5000)
        same(os.pread(fd, 10_000, 0), pattern("g", 10_000)[:100] + bytes(4900))


@check("f=hello d/ g=hello")
def truncate_refusals() -> None:
    """truncate(2): EISDIR for a directory, ENOENT for nothing, EINVAL for a negative length."""
    fails(errno.EISDIR, os.truncate, "d", 0)
    fails(errno.ENOENT, os.truncate, "nothing", 0)
    fails(errno.EINVAL, os.truncate, "f", -1)
    same(read("f"), b"hello")


@check("f=hello")
def truncate_of_the_same_size_updates_times() -> None:
    """truncate(2): if the size changed, ctime and mtime are updated; ftruncate does so also when it did not."""
    with opened("f", os.O_WRONLY) as fd:
        os.ftruncate(fd, 5)
    same(read("f"), b"hello")
    os.truncate("f", 4)
    assert os.stat("f").st_mtime_ns > STAMP


@check("f=hello")
def truncate_seen_through_descriptors() -> None:
    """truncate(2): every descriptor of the file sees the new size at once."""
    with opened("f") as reader, opened("f", os.O_WRONLY) as writer:
        same(os.pread(reader, 100, 0), b"hello")
        os.truncate("f", 2)
        same(os.pread(reader, 100, 0), b"he")
        same(os.fstat(writer).st_size, 2)
        os.pwrite(writer, b"X", 4)
        same(os.pread(reader, 100, 0), b"he\0\0X")


@check("f=hello")
def writing_behind_the_end_leaves_zeros() -> None:
    """lseek(2): a gap left by writing behind the end reads as zeros."""
    with opened("f", os.O_RDWR) as fd:
        os.lseek(fd, 100_000, os.SEEK_SET)
        os.write(fd, b"end")
        same(os.pread(fd, 200_000, 0), b"hello" + bytes(99_995) + b"end")
    same(os.stat("f").st_size, 100_003)


@check(prepare=_make_sparse)
def holes_read_as_zeros() -> None:
    """lseek(2): holes read as zeros, before and after the file is changed."""
    want = bytearray(8 * _MIB + 5)
    want[:4096] = pattern("head", 4096)
    want[3 * _MIB : 3 * _MIB + 4096] = pattern("middle", 4096)
    want[8 * _MIB :] = b"tail!"
    assert read("sparse") == want
    with opened("sparse", os.O_WRONLY) as fd:
        os.pwrite(fd, b"X", 5 * _MIB)
    want[5 * _MIB] = ord("X")
    assert read("sparse") == want


@check(prepare=_make_sparse)
def holes_stay_holes() -> None:
    """stat(2), st_blocks: a sparse file takes no more room after a small change (inode(7): 512-byte units)."""
    before = os.stat("sparse")
    assert before.st_blocks * 512 < _MIB, before
    with opened("sparse", os.O_WRONLY) as fd:
        os.pwrite(fd, b"X", 0)
        os.fsync(fd)
    after = os.stat("sparse")
    same(after.st_size, before.st_size)
    assert after.st_blocks * 512 < _MIB, after


@check(prepare=_make_sparse)
def seek_data_and_hole() -> None:
    """lseek(2), SEEK_DATA and SEEK_HOLE: find the holes, before and after the file is changed; ENXIO behind the end."""
    for change in (False, True):
        with opened("sparse", os.O_RDWR) as fd:
            if change:
                os.pwrite(fd, b"X", 0)
            same(os.lseek(fd, 0, os.SEEK_DATA), 0)
            same(os.lseek(fd, 0, os.SEEK_HOLE), 4096)
            same(os.lseek(fd, 8192, os.SEEK_DATA), 3 * _MIB)
            same(os.lseek(fd, 3 * _MIB, os.SEEK_HOLE), 3 * _MIB + 4096)
            same(os.lseek(fd, 4 * _MIB, os.SEEK_DATA), 8 * _MIB)
            same(os.lseek(fd, 8 * _MIB, os.SEEK_HOLE), 8 * _MIB + 5, "the end is a hole")
            fails(errno.ENXIO, os.lseek, fd, 9 * _MIB, os.SEEK_DATA)


@check("f=hello")
def lseek_positions() -> None:
    """lseek(2): SEEK_SET, SEEK_CUR, SEEK_END; EINVAL for a negative result; EOF is no limit."""
    with opened("f", os.O_RDWR) as fd:
        same(os.lseek(fd, -2, os.SEEK_END), 3)
        same(os.read(fd, 10), b"lo")
        same(os.lseek(fd, -4, os.SEEK_CUR), 1)
        fails(errno.EINVAL, os.lseek, fd, -1, os.SEEK_SET)
        fails(errno.EINVAL, os.lseek, fd, -6, os.SEEK_END)
        same(os.lseek(fd, 1 << 40, os.SEEK_SET), 1 << 40)
        same(os.read(fd, 1), b"")
        os.write(opened_end := os.open("f", os.O_WRONLY | os.O_APPEND), b"!")
        os.close(opened_end)
        same(os.lseek(fd, 0, os.SEEK_END), 6, "the end moved by another descriptor")


@check()
def posix_fallocate_makes_room() -> None:
    """posix_fallocate(3): the file is at least that long, and reads as zeros; emulated where the filesystem cannot."""
    with opened("f", os.O_RDWR | os.O_CREAT) as fd:
        os.write(fd, b"abc")
        os.posix_fallocate(fd, 0, 50_000)
        same(os.fstat(fd).st_size, 50_000)
        same(os.pread(fd, 60_000, 0), b"abc" + bytes(49_997))


@check("f=hello")
def fallocate_extends() -> None:
    """fallocate(2), mode 0: the size grows, the new part reads as zeros; KEEP_SIZE leaves the size."""
    with opened("f", os.O_RDWR) as fd:
        fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 100_000)
        same(os.fstat(fd).st_size, 5)
        assert os.fstat(fd).st_blocks * 512 >= 100_000
        fallocate(fd, 0, 0, 20_000)
        same(os.fstat(fd).st_size, 20_000)
        same(os.pread(fd, 30_000, 0), b"hello" + bytes(19_995))


@check("f~100000")
def fallocate_punches_and_zeroes() -> None:
    """fallocate(2): PUNCH_HOLE (with KEEP_SIZE) and ZERO_RANGE turn a range into zeros, for every reader."""
    needs_fallocate(FALLOC_FL_ZERO_RANGE)
    want = bytearray(pattern("f", 100_000))
    with opened("f", os.O_RDWR) as fd, opened("f") as reader:
        assert os.pread(reader, 200_000, 0) == want
        fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 10_000, 20_000)
        want[10_000:30_000] = bytes(20_000)
        assert os.pread(reader, 200_000, 0) == want, "after PUNCH_HOLE"
        fallocate(fd, FALLOC_FL_ZERO_RANGE, 90_000, 20_000)
        want[90_000:] = bytes(20_000)
        assert os.pread(reader, 200_000, 0) == want, "after ZERO_RANGE"
        same(os.fstat(reader).st_size, 110_000)


@check("f~8192")
def fallocate_refusals() -> None:
    """fallocate(2): EBADF if not writable, EINVAL for an empty range, EOPNOTSUPP for PUNCH_HOLE without KEEP_SIZE."""
    with opened("f") as fd:
        fails(errno.EBADF, fallocate, fd, 0, 0, 10)
    with opened("f", os.O_RDWR) as fd:
        fails(errno.EINVAL, fallocate, fd, 0, 0, 0)
        fails(errno.EINVAL, fallocate, fd, 0, -1, 10)
        fails(errno.EOPNOTSUPP, fallocate, fd, FALLOC_FL_PUNCH_HOLE, 0, 4096)
        fails((errno.EINVAL, errno.EOPNOTSUPP), fallocate, fd, FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_KEEP_SIZE, 0, 4096)
    same(read("f"), pattern("f", 8192))


@check("f~300000")
def sendfile_out_and_in() -> None:
    """sendfile(2): from the file into a socket or a file, and into the file from another."""
    with opened("copy", os.O_RDWR | os.O_CREAT) as out, opened("f") as source:
        offset = 0
        while sent := os.sendfile(out, source, offset, 300_000 - offset):
            offset += sent
        same(os.pread(out, 400_000, 0), pattern("f", 300_000))
    reader, writer = os.pipe()
    with opened("f") as source:
        same(os.sendfile(writer, source, 1000, 5000), 5000)
    same(os.read(reader, 5000), pattern("f", 300_000)[1000:6000])
    with opened("f", os.O_RDWR) as out, opened("copy") as source:
        os.lseek(out, 300_000, os.SEEK_SET)
        same(os.sendfile(out, source, 0, 1000), 1000)
    same(read("f"), pattern("f", 300_000) + pattern("f", 300_000)[:1000])


@check("f~100000 g")
def splice_through_a_pipe() -> None:
    """splice(2): from a file into a pipe and from the pipe into a file."""
    reader, writer = os.pipe()
    with opened("f") as source, opened("g", os.O_WRONLY) as out:
        done = 0
        while done < 100_000:
            moved = os.splice(source, writer, 40_000, offset_src=done)
            while moved:
                written = os.splice(reader, out, moved, offset_dst=done)
                moved -= written
                done += written
    same(read("g"), pattern("f", 100_000))


@check("f~100000 g=old. h~100000")
def copy_file_range_between_files() -> None:
    """copy_file_range(2): copies bytes between files and within one; overlapping ranges of one file are EINVAL."""
    with opened("f") as source, opened("g", os.O_RDWR) as out:
        done = 0
        while done < 100_000:
            moved = os.copy_file_range(source, out, 100_000 - done, offset_src=done, offset_dst=4 + done)
            assert moved > 0, f"nothing copied at {done}"
            done += moved
        same(os.pread(out, 200_000, 0), b"old." + pattern("f", 100_000))
        same(os.copy_file_range(source, out, 10, offset_src=100_000, offset_dst=0), 0, "at the end of the source")
    with opened("h", os.O_RDWR) as fd:
        same(os.copy_file_range(fd, fd, 4096, offset_src=0, offset_dst=50_000), 4096)
        same(os.pread(fd, 4096, 50_000), pattern("h", 100_000)[:4096])
        fails(errno.EINVAL, os.copy_file_range, fd, fd, 4096, 0, 100)


@check("d/a=1 d/b~70000 d/c->a d/e/ d/g==d/a")
def copied_by_programs() -> None:
    """cp(1) -a, tar(1) and diff(1) find in a copy what they find in the original."""
    subprocess.run(["cp", "-a", "d", "d2"], check=True)
    subprocess.run(["diff", "-r", "d", "d2"], check=True)
    subprocess.run("tar -cf t.tar d && mkdir x && tar -xf t.tar -C x && diff -r d x/d", shell=True, check=True)
    for copy in ("d2", "x/d"):
        same(os.stat(f"{copy}/a").st_ino, os.stat(f"{copy}/g").st_ino, "the hard link")
        same(os.stat(f"{copy}/b").st_mtime_ns // 10**9, STAMP // 10**9)
    same(os.stat("d2/b").st_mtime_ns, STAMP)


@check("db/")
def databases() -> None:
    """SQLite in both journal modes: shared memory, locks, truncation and rename as one program uses them."""
    import sqlite3

    for mode in ("wal", "delete"):
        path = f"db/{mode}.sqlite"
        one, two = sqlite3.connect(path), sqlite3.connect(path)
        same(one.execute(f"pragma journal_mode={mode}").fetchone()[0], mode)
        one.execute("create table t (n integer, s text)")
        one.executemany("insert into t values (?, ?)", [(n, "x" * n) for n in range(300)])
        one.commit()
        same(two.execute("select count(*), sum(n) from t").fetchone(), (300, 44_850))
        two.execute("delete from t where n % 2")
        two.commit()
        same(one.execute("select count(*) from t").fetchone(), (150,))
        same(one.execute("pragma integrity_check").fetchone(), ("ok",))
        one.close()
        two.close()


@check("f=one")
def editors_replace_files() -> None:
    """sed(1) -i and the write-then-rename of editors: the new content under the old name, mode kept by sed."""
    os.chmod("f", 0o640)
    subprocess.run(["sed", "-i", "s/one/two/", "f"], check=True)
    same(read("f"), b"two")
    same(os.stat("f").st_mode & 0o777, 0o640)
    write("f.new", b"three")
    os.rename("f.new", "f")
    same(read("f"), b"three")


@check("f~5000")
def reads_while_writing() -> None:
    """write(2): after a write returns, a read through any descriptor sees it (POSIX)."""
    with opened("f") as reader, opened("f", os.O_WRONLY) as writer:
        for number in range(200):
            mark = b"%05d" % number
            os.pwrite(writer, mark, number * 25)
            same(os.pread(reader, 5, number * 25), mark)
        same(read_fd(reader)[:5], b"00000")
