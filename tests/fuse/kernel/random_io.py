"""Do the same random things to files on a mount and to plain ones, and compare them after each: for test_random_io.

    random_io.py FILE MODEL SEED STEPS [SIZE]

FILE is on the mount, MODEL on any other filesystem; beside each lies another one, with `.other` behind its name. SIZE
is the largest that they become. Each step picks one of: read and write (at once or through a map that stays, by a
descriptor of before the first change or by a new one), change the size, punch, zero, reserve, collapse and insert
ranges, copy within the file and between the two, look for holes, read and write past the page cache, open anew, write
through to the device. What the mount cannot do (EOPNOTSUPP) is done to neither.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
import sys

BLOCK = 4096
_KEEP_SIZE, _PUNCH_HOLE, _COLLAPSE, _ZERO, _INSERT = 0x01, 0x02, 0x08, 0x10, 0x20  # FALLOC_FL_*, <linux/falloc.h>
_libc = ctypes.CDLL(None, use_errno=True)


class Pair:
    """A file and its model, both open, and another pair beside them."""

    def __init__(self, path: str, model: str, seed: int, largest: int) -> None:
        self.largest = largest
        self.paths = (path, model)
        self.rng = random.Random(seed)
        self.before = [os.open(each, os.O_RDONLY) for each in self.paths]  # never opened anew
        self.fds = [os.open(each, os.O_RDWR) for each in self.paths]
        self.others = [os.open(f"{each}.other", os.O_RDWR) for each in self.paths]
        self.views: list[mmap.mmap] = []  # of both, as long as the files were

    def range(self) -> tuple[int, int]:
        """(offset, length) that may reach over the end."""
        offset = self.rng.randrange(self.largest)
        return offset, self.rng.choice((1, 17, 4096, 10_000, 70_000, self.rng.randrange(1, self.largest)))

    def size(self) -> int:
        sizes = {os.fstat(fd).st_size for fd in self.fds}
        assert len(sizes) == 1, f"sizes differ: {sizes}"
        return sizes.pop()

    def read(self) -> None:
        offset, length = self.range()
        fds = self.rng.choice((self.fds, self.before))
        got, want = (os.pread(fd, length, offset) for fd in fds)
        assert got == want, f"read at {offset} of {length}"

    def write(self) -> None:
        offset, length = self.range()
        data = self.rng.randbytes(length)
        assert [os.pwrite(fd, data, offset) for fd in self.fds] == [length] * 2

    def append(self) -> None:
        data = self.rng.randbytes(self.rng.randrange(1, 5000))
        if self.size() < self.largest:
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
        size = self.rng.randrange(self.largest)
        for fd in self.fds:
            os.ftruncate(fd, size)

    def open_truncated(self) -> None:
        data = self.rng.randbytes(self.rng.randrange(60_000))
        for path in self.paths:
            fd = os.open(path, os.O_WRONLY | os.O_TRUNC)
            os.write(fd, data)
            os.close(fd)

    def map_anew(self) -> None:
        """A map that stays over what is done to the file by others; its pages are touched within the file only."""
        for view in self.views:
            view.close()
        size = self.size()
        self.views = [mmap.mmap(fd, size) for fd in self.fds] if size else []

    def use_map(self) -> None:
        size = min(self.size(), *(len(view) for view in self.views)) if self.views else 0
        if size:
            offset = self.rng.randrange(size)
            data = self.rng.randbytes(min(size - offset, self.rng.randrange(1, 9000)))
            got, want = (view[offset : offset + len(data)] for view in self.views)
            assert got == want, f"mapped before, at {offset}"
            for view in self.views:
                view[offset : offset + len(data)] = data

    def space(self, mode: int, offset: int, length: int) -> None:
        for fd in self.fds:  # the mount's comes first
            if _libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)) != 0:
                code = ctypes.get_errno()
                assert (fd, code) == (self.fds[0], errno.EOPNOTSUPP), os.strerror(code)
                return

    def punch(self) -> None:
        self.space(_PUNCH_HOLE | _KEEP_SIZE, *self.range())

    def zero(self) -> None:
        offset, length = self.range()
        self.space(_ZERO | self.rng.choice((0, _KEEP_SIZE)), offset, length)

    def keep_room(self) -> None:
        self.space(_KEEP_SIZE, *self.range())

    def shift(self) -> None:
        blocks = self.size() // BLOCK
        if blocks > 2:
            at = self.rng.randrange(1, blocks - 1)
            self.space(self.rng.choice((_COLLAPSE, _INSERT)), at * BLOCK, BLOCK)

    def reserve(self) -> None:
        offset, length = self.range()
        for fd in self.fds:
            os.posix_fallocate(fd, offset, length)

    def copy(self) -> None:
        source, length = self.range()
        target = self.rng.randrange(self.largest)
        if source + length <= target or target + length <= source:
            for fd in self.fds:
                at, left = 0, min(length, max(0, os.fstat(fd).st_size - source))
                while at < left:
                    done = os.copy_file_range(fd, fd, left - at, source + at, target + at)
                    assert done > 0
                    at += done

    def copy_between(self) -> None:
        """copy_file_range(2) from the one file to the other, or back."""
        source, length = self.range()
        target = self.rng.randrange(self.largest)
        pairs = list(zip(self.fds, self.others, strict=True))
        if self.rng.random() < 0.5:
            pairs = [(other, fd) for fd, other in pairs]
        for from_fd, to_fd in pairs:
            at, left = 0, min(length, max(0, os.fstat(from_fd).st_size - source))
            while at < left:
                done = os.copy_file_range(from_fd, to_fd, left - at, source + at, target + at)
                assert done > 0
                at += done

    def direct(self) -> None:
        """Read or write blocks past the page cache, with O_DIRECT."""
        offset, length = (BLOCK * (each // BLOCK) for each in self.range())
        is_write = self.rng.random() < 0.5
        for view in self.views:
            view.flush()  # what a map has changed and direct writes are in no order
        with mmap.mmap(-1, length or BLOCK) as room:
            room[:] = data = self.rng.randbytes(len(room))
            got = []
            for path in self.paths:
                fd = os.open(path, os.O_RDWR | os.O_DIRECT)
                if is_write:
                    assert os.pwrite(fd, room, offset) == len(data)
                else:
                    done = os.preadv(fd, [room], offset)
                    got.append(room[:done])
                os.close(fd)
            assert is_write or got[0] == got[1], f"read directly at {offset}"

    def seek(self) -> None:
        """What SEEK_HOLE says to be a hole has no data in the model, and the last hole is at the end."""
        size, at = self.size(), 0
        while at < size:
            hole = os.lseek(self.fds[0], at, os.SEEK_HOLE)
            assert at <= hole <= size
            try:
                at = os.lseek(self.fds[0], hole, os.SEEK_DATA) if hole < size else size
            except OSError as error:
                if error.errno != errno.ENXIO:  # no data up to the end
                    raise
                at = size
            assert not os.pread(self.fds[1], at - hole, hole).strip(b"\0"), f"no hole from {hole} to {at}"

    def open_anew(self) -> None:
        for number, path in enumerate(self.paths):
            os.close(self.fds[number])
            self.fds[number] = os.open(path, os.O_RDWR)

    def sync(self) -> None:
        for fd in self.fds:
            os.fsync(fd)

    def compare(self) -> None:
        size = self.size()
        for fds in (self.fds, self.before):
            got, want = (os.pread(fd, size + 1, 0) for fd in fds)
            assert got == want, "the files differ"
        got, want = (os.pread(fd, 2 * self.largest, 0) for fd in self.others)
        assert got == want, "the other files differ"


STEPS = [
    Pair.read, Pair.read, Pair.write, Pair.write, Pair.append, Pair.map_read, Pair.map_write, Pair.truncate,
    Pair.open_truncated, Pair.punch, Pair.reserve, Pair.copy, Pair.open_anew, Pair.sync, Pair.map_anew, Pair.use_map,
    Pair.use_map, Pair.zero, Pair.keep_room, Pair.shift, Pair.copy_between, Pair.copy_between, Pair.direct, Pair.seek,
]  # fmt: skip


def main(path: str, model: str, seed: int, steps: int, largest: int = 300_000) -> None:
    """Raises: AssertionError naming the step after which the files differ."""
    pair = Pair(path, model, seed, largest)
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
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
