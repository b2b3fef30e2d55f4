"""Do the same random things to two files, and compare them after each: a program for test_random_io.

    random_io.py FILE MODEL SEED STEPS

FILE is on the mount, MODEL on any other filesystem. Each step picks one of: read and write (whole or through a map),
change the size, punch a hole, copy within the file, open anew, write through to the device.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import sys

LARGEST = 300_000
_PUNCH_HOLE = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, <linux/falloc.h>
_libc = ctypes.CDLL(None, use_errno=True)


class Pair:
    """A file and its model, both open."""

    def __init__(self, path: str, model: str, seed: int) -> None:
        self.paths = (path, model)
        self.rng = random.Random(seed)
        self.fds = [os.open(each, os.O_RDWR) for each in self.paths]

    def range(self) -> tuple[int, int]:
        """(offset, length) that may reach over the end."""
        offset = self.rng.randrange(LARGEST)
        return offset, self.rng.choice((1, 17, 4096, 10_000, 70_000, self.rng.randrange(1, LARGEST)))

    def size(self) -> int:
        sizes = {os.fstat(fd).st_size for fd in self.fds}
        assert len(sizes) == 1, f"sizes differ: {sizes}"
        return sizes.pop()

    def read(self) -> None:
        offset, length = self.range()
        got, want = (os.pread(fd, length, offset) for fd in self.fds)
        assert got == want, f"read at {offset} of {length}"

    def write(self) -> None:
        offset, length = self.range()
        data = self.rng.randbytes(length)
        assert [os.pwrite(fd, data, offset) for fd in self.fds] == [length] * 2

    def append(self) -> None:
        data = self.rng.randbytes(self.rng.randrange(1, 5000))
        if self.size() < LARGEST:
            for path in self.paths:
                fd = os.open(path, os.O_WRONLY | os.O_APPEND)
                os.write(fd, data)
                os.close(fd)

    def map_read(self) -> None:
        size = self.size()
        if size:
            offset = self.rng.randrange(size)
            pieces = []
            for fd in self.fds:
                with mmap.mmap(fd, size, prot=mmap.PROT_READ) as view:
                    pieces.append(view[offset : offset + 9000])
            got, want = pieces
            assert got == want, f"mapped at {offset}"

    def map_write(self) -> None:
        size = self.size()
        if size:
            offset = self.rng.randrange(size)
            data = self.rng.randbytes(min(size - offset, self.rng.randrange(1, 9000)))
            for fd in self.fds:
                with mmap.mmap(fd, size) as view:
                    view[offset : offset + len(data)] = data
                    if self.rng.random() < 0.3:
                        view.flush()

    def truncate(self) -> None:
        size = self.rng.randrange(LARGEST)
        for fd in self.fds:
            os.ftruncate(fd, size)

    def open_truncated(self) -> None:
        data = self.rng.randbytes(self.rng.randrange(60_000))
        for path in self.paths:
            fd = os.open(path, os.O_WRONLY | os.O_TRUNC)
            os.write(fd, data)
            os.close(fd)

    def punch(self) -> None:
        offset, length = self.range()
        for fd in self.fds:
            done = _libc.fallocate(fd, _PUNCH_HOLE, ctypes.c_long(offset), ctypes.c_long(length))
            assert done == 0, os.strerror(ctypes.get_errno())

    def reserve(self) -> None:
        offset, length = self.range()
        for fd in self.fds:
            os.posix_fallocate(fd, offset, length)

    def copy(self) -> None:
        source, length = self.range()
        target = self.rng.randrange(LARGEST)
        if source + length <= target or target + length <= source:
            for fd in self.fds:
                at, left = 0, min(length, max(0, os.fstat(fd).st_size - source))
                while at < left:
                    done = os.copy_file_range(fd, fd, left - at, source + at, target + at)
                    assert done > 0
                    at += done

    def open_anew(self) -> None:
        for number, path in enumerate(self.paths):
            os.close(self.fds[number])
            self.fds[number] = os.open(path, os.O_RDWR)

    def sync(self) -> None:
        for fd in self.fds:
            os.fsync(fd)

    def compare(self) -> None:
        size = self.size()
        got, want = (os.pread(fd, size + 1, 0) for fd in self.fds)
        assert got == want, "the files differ"


STEPS = [
    Pair.read, Pair.read, Pair.write, Pair.write, Pair.append, Pair.map_read, Pair.map_write, Pair.truncate,
    Pair.open_truncated, Pair.punch, Pair.reserve, Pair.copy, Pair.open_anew, Pair.sync,
]  # fmt: skip


def main(path: str, model: str, seed: int, steps: int) -> None:
    """Raises: AssertionError naming the step after which the files differ."""
    pair = Pair(path, model, seed)
    for number in range(steps):
        step = pair.rng.choice(STEPS)
        try:
            step(pair)
            if number % 20 == 0:
                pair.compare()
        except AssertionError as failure:
            raise AssertionError(f"seed {seed}, step {number}, {step.__name__}: {failure}") from failure
    pair.compare()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
