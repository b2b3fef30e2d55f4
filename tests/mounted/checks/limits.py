"""Where files end: large offsets, EFBIG, RLIMIT_FSIZE and SIGXFSZ (write(2), truncate(2), setrlimit(2), lseek(2))."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Callable

from tests.mounted.checking import beside, check, elsewhere, opened, read, same, write
from tests.mounted.libc import fallocate
from tests.mounted.trees import pattern

_EDGES = (2**31, 2**32, 2**32 + 2**31, 2**40)
_LIMIT = 10_000


@check("f~100000")
def writing_across_the_edges_of_32_bits() -> None:
    """write(2), pwrite(2): offsets are 64 bits wide; bytes around 2^31, 2^32 and 2^40 are where they were written."""
    with opened("f", os.O_RDWR) as fd:
        for edge in _EDGES:
            os.pwrite(fd, b"<%d>" % edge, edge - 3)
            same(os.fstat(fd).st_size, edge - 3 + len(b"<%d>" % edge))
        for edge in _EDGES:
            want = b"<%d>" % edge
            same(os.pread(fd, len(want), edge - 3), want)
            same(os.pread(fd, 8, edge - 11), bytes(8), "the hole before it")
        same(os.lseek(fd, 2**31 + 5, os.SEEK_SET), 2**31 + 5)
        os.write(fd, b"moving on")
        same(os.lseek(fd, 0, os.SEEK_CUR), 2**31 + 14)
        same(os.pread(fd, 100_000, 0), pattern("f", 100_000))
        assert os.fstat(fd).st_blocks * 512 < 1 << 20
        os.ftruncate(fd, 2**32 + 1)
        same(os.pread(fd, 4, 2**32), b"9", "what is left of the bytes that began three before 2^32")
        os.ftruncate(fd, 10)
    same(read("f"), pattern("f", 100_000)[:10])


@check("f=hello")
def appending_behind_four_gibibytes() -> None:
    """open(2), O_APPEND: the end of a file is where its size says, beyond 32 bits too."""
    os.truncate("f", 2**32 + 7)
    write("f", b"end", os.O_APPEND)
    same(os.stat("f").st_size, 2**32 + 10)
    with opened("f") as fd:
        same(os.pread(fd, 10, 2**32 + 7), b"end")


def _beyond(name: str) -> list[object]:
    """What a filesystem says of sizes that it may not have; nothing is written in earnest."""
    told: list[object] = []
    with opened(name, os.O_RDWR) as fd:
        for offset in (2**44 - 4096, 2**44, 2**55, 2**60, 2**63 - 4096, 2**63 - 1):
            for call in (lambda at=offset: os.pwrite(fd, b"x", at), lambda at=offset: os.ftruncate(fd, at)):
                try:
                    call()
                except OSError as failure:
                    told.append((offset, failure.errno))
                else:
                    told.append((offset, os.fstat(fd).st_size))
                os.ftruncate(fd, 5)
    return told


@check("f=hello")
def files_larger_than_the_filesystem_allows() -> None:
    """write(2), truncate(2): EFBIG above the largest size of the filesystem, and nothing is changed."""
    write(beside("f"), b"hello")
    same(_beyond("f"), _beyond(beside("f")))
    same(read("f"), b"hello")


def _limited(call: Callable[..., object], *args: object) -> tuple[object, bool]:
    """Call with RLIMIT_FSIZE set: its result or errno, and whether SIGXFSZ came."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGXFSZ})
    resource.setrlimit(resource.RLIMIT_FSIZE, (_LIMIT, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    result: object
    try:
        result = call(*args)
    except OSError as failure:
        result = errno.errorcode[failure.errno or 0]
    return result, signal.sigtimedwait({signal.SIGXFSZ}, 0) is not None


@check("f~9990 g~9990 h~20000 k")
def the_limit_on_file_sizes() -> None:
    """setrlimit(2), RLIMIT_FSIZE: a write stops at the limit; one that begins there is SIGXFSZ and EFBIG.

    So are truncate(2) and fallocate(2) beyond it. What is there already can be read, changed and made shorter.
    """
    with opened("f", os.O_RDWR) as fd:
        same(elsewhere(_limited, os.pwrite, fd, b"x" * 100, 9990), (10, False), "up to the limit")
        same(os.fstat(fd).st_size, _LIMIT)
        same(elsewhere(_limited, os.pwrite, fd, b"x", _LIMIT), ("EFBIG", True))
        same(elsewhere(_limited, os.ftruncate, fd, _LIMIT + 1), ("EFBIG", True))
        same(os.fstat(fd).st_size, _LIMIT)
    same(elsewhere(_limited, os.truncate, "g", _LIMIT + 1), ("EFBIG", True))
    same(elsewhere(_limited, os.truncate, "g", _LIMIT), (None, False))
    with opened("h", os.O_RDWR) as fd:
        same(elsewhere(_limited, os.pread, fd, 5, 15_000), (pattern("h", 20_000)[15_000:15_005], False))
        same(elsewhere(_limited, os.pwrite, fd, b"new", 5), (3, False))
        same(elsewhere(_limited, os.pwrite, fd, b"new", 15_000), ("EFBIG", True), "behind the limit, within the file")
        same(elsewhere(_limited, os.ftruncate, fd, 15_000), (None, False), "shorter is no growth")
    same(os.stat("h").st_size, 15_000)


@check("f~9990")
def space_behind_the_limit_on_file_sizes() -> None:
    """fallocate(2): EFBIG behind RLIMIT_FSIZE."""
    with opened("f", os.O_RDWR) as fd:
        fallocate(fd, 0, 0, 9990)
        got = elsewhere(_limited, fallocate, fd, 0, 0, _LIMIT + 1)
        same(got[0], "EFBIG")
        same(os.fstat(fd).st_size, 9990)


@check("f=hello")
def who_is_not_told_dies_of_it() -> None:
    """signal(7): the default action of SIGXFSZ ends the process; the file is as long as the limit allows."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (_LIMIT, _LIMIT))
        with opened("f", os.O_WRONLY | os.O_APPEND) as fd:
            while True:
                os.write(fd, b"x" * 999)
    same(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), -signal.SIGXFSZ)
    same(os.stat("f").st_size, _LIMIT)
    write("f", b"more", os.O_APPEND)
    same(os.stat("f").st_size, _LIMIT + 4)


@check()
def the_largest_name_and_path_are_what_they_say() -> None:
    """pathconf(3): NAME_MAX is 255, PATH_MAX 4096."""
    same(os.pathconf(".", "PC_NAME_MAX"), 255)
    same(os.pathconf(".", "PC_PATH_MAX"), 4096)
    same(os.pathconf(".", "PC_NO_TRUNC"), 1)
