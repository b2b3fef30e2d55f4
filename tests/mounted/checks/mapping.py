"""mmap(2): shared and private mappings, before and after the first change of a file."""

from __future__ import annotations

import mmap
import os
import signal

from tests.mounted.checking import check, elsewhere, opened, read, same
from tests.mounted.trees import pattern

_SIZE = 20_000


@check(f"f~{_SIZE}")
def a_mapping_reads_the_file() -> None:
    """mmap(2): the pages hold the file's bytes, and zeros behind its end within the last page."""
    with opened("f") as fd:
        shared = mmap.mmap(fd, _SIZE, mmap.MAP_SHARED, mmap.PROT_READ)
        private = mmap.mmap(fd, _SIZE, mmap.MAP_PRIVATE, mmap.PROT_READ)
    same(shared[:], pattern("f", _SIZE))
    same(private[:], pattern("f", _SIZE))


@check(f"f~{_SIZE}")
def a_shared_mapping_writes_the_file() -> None:
    """mmap(2), MAP_SHARED: updates are visible to readers and, after msync(2), in the file."""
    with opened("f", os.O_RDWR) as fd, opened("f") as reader:
        shared = mmap.mmap(fd, _SIZE)
        shared[5000:5005] = b"HELLO"
        same(os.pread(reader, 5, 5000), b"HELLO")
        shared.flush()
    same(read("f")[5000:5005], b"HELLO")
    shared[0:3] = b"abc"
    shared.close()
    same(read("f")[:3], b"abc", "written through the mapping after its descriptor was closed")


@check(f"f~{_SIZE}")
def a_private_mapping_keeps_its_changes() -> None:
    """mmap(2), MAP_PRIVATE: changes are not carried through to the file."""
    with opened("f") as fd:
        private = mmap.mmap(fd, _SIZE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    private[0:5] = b"HELLO"
    same(private[:5], b"HELLO")
    same(read("f"), pattern("f", _SIZE))


@check(f"f~{_SIZE}")
def a_mapping_made_before_sees_writes_made_after() -> None:
    """mmap(2), MAP_SHARED: a mapping shows the file, also when the file is written for the first time afterwards."""
    with opened("f") as fd:
        shared = mmap.mmap(fd, _SIZE, mmap.MAP_SHARED, mmap.PROT_READ)
        same(shared[:10], pattern("f", _SIZE)[:10])
        with opened("f", os.O_WRONLY) as writer:
            os.pwrite(writer, b"first write", 0)
            os.pwrite(writer, b"far", 15_000)
        same(shared[:11], b"first write")
        same(shared[15_000:15_003], b"far", "a page that was not touched before")
        same(os.pread(fd, 11, 0), b"first write")


@check(f"f~{_SIZE}")
def untouched_pages_of_an_old_mapping() -> None:
    """mmap(2): pages first touched after the file was changed, renamed and unlinked come from the one file there is."""
    with opened("f") as fd:
        shared = mmap.mmap(fd, _SIZE, mmap.MAP_SHARED, mmap.PROT_READ)
    with opened("f", os.O_WRONLY) as writer:
        os.pwrite(writer, b"X", 0)
    os.rename("f", "g")
    os.unlink("g")
    with opened("/proc/self/clear_refs", os.O_WRONLY) as drop:
        os.write(drop, b"1")
    same(shared[0:1], b"X")
    same(shared[8192:], pattern("f", _SIZE)[8192:])


@check(f"f~{_SIZE}")
def two_mappings_agree() -> None:
    """mmap(2), MAP_SHARED: two mappings of one file, through two descriptors and two processes, are one memory."""
    with opened("f", os.O_RDWR) as one, opened("f", os.O_RDWR) as two:
        first, second = mmap.mmap(one, _SIZE), mmap.mmap(two, _SIZE)
    first[100:105] = b"first"
    same(second[100:105], b"first")

    def other_process() -> None:
        with opened("f", os.O_RDWR) as fd:
            third = mmap.mmap(fd, _SIZE)
        same(third[100:105], b"first")
        third[200:205] = b"third"

    elsewhere(other_process)
    same(second[200:205], b"third")


@check("f~4096")
def a_mapping_ends_with_the_file() -> None:
    """mmap(2): access to a page wholly behind the end of the file is SIGBUS; truncation moves that end."""

    def touch(offset: int) -> int:
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGBUS, signal.SIG_DFL)
            _ = shared[offset]
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    with opened("f", os.O_RDWR) as fd:
        os.ftruncate(fd, 12_288)
        shared = mmap.mmap(fd, 12_288)
        same(touch(8192), 0)
        os.ftruncate(fd, 4096)
        same(touch(0), 0)
        same(touch(8192), -signal.SIGBUS)
        os.ftruncate(fd, 12_288)
        same(touch(8192), 0)


@check(f"f~{_SIZE}")
def mapping_needs_the_right_descriptor() -> None:
    """mmap(2): EACCES for a shared writable mapping of a descriptor that is not open for writing."""
    with opened("f") as fd:
        try:
            mmap.mmap(fd, _SIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        except PermissionError:
            return
    raise AssertionError("the mapping was allowed")


@check("f~40960")
def truncation_races_with_a_mapping() -> None:
    """mmap(2), truncate(2): who writes through a mapping while the file changes its size gets SIGBUS or its bytes in.

    Afterwards the file is as long as was said last, and holds what it held, zeros, or what the mapping wrote.
    """
    pages = 10
    for _ in range(15):
        with opened("f", os.O_RDWR) as fd:
            os.ftruncate(fd, pages * 4096)
            shared = mmap.mmap(fd, pages * 4096)
            pid = os.fork()
            if pid == 0:
                signal.signal(signal.SIGBUS, signal.SIG_DFL)
                for turn in range(2000):
                    shared[(turn * 4096 + turn) % (pages * 4096)] = 0x4D
                os._exit(0)
            for size in (4096, 30_000, 5, 40_960, 8191, 20_000):
                os.ftruncate(fd, size)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) in (0, -signal.SIGBUS)
            shared.close()
            data = os.pread(fd, 1 << 20, 0)
            same(len(data), 20_000)
            assert set(data[8192:]) <= {0, 0x4D}, "what was cut off came back"
            same(os.fstat(fd).st_size, 20_000)


@check("f~8192 g~8192")
def a_mapping_of_what_is_replaced_and_removed() -> None:
    """mmap(2): a shared mapping keeps its file, though another one takes its name: what is written goes to the old."""
    with opened("f", os.O_RDWR) as fd:
        shared = mmap.mmap(fd, 8192)
        os.rename("g", "f")
        shared[:5] = b"after"
        shared.flush()
        same(os.pread(fd, 5, 0), b"after")
        same(read("f"), pattern("g", 8192))
    os.unlink("f")
    shared[:5] = b"again"
    shared.flush()
    same(shared[:5], b"again")
