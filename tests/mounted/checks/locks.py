"""flock(2), POSIX record locks and open file description locks (fcntl(2)), between processes."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import struct
from collections.abc import Callable

from tests.mounted.checking import check, elsewhere, fails, has_flock, opened, write

_FLOCK = "hhqqi4x"  # struct flock of fcntl(2) on 64-bit machines


def _record(kind: int, start: int, length: int) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, start, length, 0)


def _takes_flock(name: str, operation: int) -> bool:
    with opened(name) as fd:
        return has_flock(fd, operation)


def _takes_record(name: str, start: int, length: int) -> bool:
    with opened(name, os.O_RDWR) as fd:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES
            return False
        return True


@check("f=hello")
def flock_between_processes() -> None:
    """flock(2): exclusive against everybody, shared against exclusive only; released by unlock and by close."""
    with opened("f") as fd:
        assert has_flock(fd, fcntl.LOCK_EX)
        assert not elsewhere(_takes_flock, "f", fcntl.LOCK_SH)
        assert not elsewhere(_takes_flock, "f", fcntl.LOCK_EX)
        fcntl.flock(fd, fcntl.LOCK_UN)
        assert elsewhere(_takes_flock, "f", fcntl.LOCK_EX)
        assert has_flock(fd, fcntl.LOCK_SH)
        assert elsewhere(_takes_flock, "f", fcntl.LOCK_SH)
        assert not elsewhere(_takes_flock, "f", fcntl.LOCK_EX)
    assert elsewhere(_takes_flock, "f", fcntl.LOCK_EX)


@check("f=hello")
def flock_holds_over_the_first_change() -> None:
    """flock(2): the lock is on the file; writing it for the first time, or renaming it, does not lose the lock."""
    with opened("f") as fd:
        assert has_flock(fd, fcntl.LOCK_EX)
        write("f", b"changed")
        assert not elsewhere(_takes_flock, "f", fcntl.LOCK_EX)
        os.rename("f", "g")
        assert not elsewhere(_takes_flock, "g", fcntl.LOCK_EX)


@check("f=hello g==f")
def flock_through_another_name() -> None:
    """flock(2): locks belong to the file, whichever of its names was opened."""
    with opened("f") as fd:
        assert has_flock(fd, fcntl.LOCK_EX)
        assert not elsewhere(_takes_flock, "g", fcntl.LOCK_EX)


@check("d/")
def flock_of_a_directory() -> None:
    """flock(2): a directory can be locked."""
    with opened("d") as fd:
        assert has_flock(fd, fcntl.LOCK_EX)
        assert not elsewhere(_takes_flock, "d", fcntl.LOCK_EX)


@check("f~1000")
def record_locks_between_processes() -> None:
    """fcntl(2), F_SETLK: ranges conflict only where they overlap; F_GETLK names the holder."""
    with opened("f", os.O_RDWR) as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 100, 200)
        assert not elsewhere(_takes_record, "f", 250, 10)
        assert elsewhere(_takes_record, "f", 0, 200)
        assert elsewhere(_takes_record, "f", 300, 0)

        def holder() -> int:
            with opened("f", os.O_RDWR) as other:
                found = fcntl.fcntl(other, fcntl.F_GETLK, _record(fcntl.F_WRLCK, 200, 1))
            return int(struct.unpack(_FLOCK, found)[4])

        assert elsewhere(holder) == os.getpid()
        fcntl.lockf(fd, fcntl.LOCK_UN, 100, 200)
        assert elsewhere(_takes_record, "f", 250, 10)


@check("f~1000")
def record_locks_hold_over_the_first_change() -> None:
    """fcntl(2): a lock taken before the file was changed for the first time still holds."""
    with opened("f", os.O_RDWR) as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)
        os.pwrite(fd, b"X", 500)
        assert not elsewhere(_takes_record, "f", 0, 10)


@check("f~1000")
def record_locks_end_with_any_close() -> None:
    """fcntl(2): a process loses its record locks on a file when it closes any descriptor of it."""
    with opened("f", os.O_RDWR) as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)
        assert not elsewhere(_takes_record, "f", 0, 10)
        os.close(os.open("f", os.O_RDONLY))
        assert elsewhere(_takes_record, "f", 0, 10)


@check("f~1000")
def description_locks() -> None:
    """fcntl(2), F_OFD_SETLK: owned by the open file description: they conflict within a process, survive closes."""
    with opened("f", os.O_RDWR) as one, opened("f", os.O_RDWR) as two:
        fcntl.fcntl(one, fcntl.F_OFD_SETLK, _record(fcntl.F_WRLCK, 0, 10))
        fails((errno.EAGAIN, errno.EACCES), fcntl.fcntl, two, fcntl.F_OFD_SETLK, _record(fcntl.F_WRLCK, 5, 10))
        os.close(os.open("f", os.O_RDONLY))
        assert not elsewhere(_takes_record, "f", 0, 10)
    assert elsewhere(_takes_record, "f", 0, 10)


@check("f~1000")
def waiting_for_a_lock() -> None:
    """flock(2) and fcntl(2), F_SETLKW: a process that waits gets the lock when it is released."""
    for take in (lambda fd: fcntl.flock(fd, fcntl.LOCK_EX), lambda fd: fcntl.lockf(fd, fcntl.LOCK_EX)):
        reader, writer = os.pipe()
        fd = os.open("f", os.O_RDWR)
        take(fd)
        pid = os.fork()
        if pid == 0:
            os.close(fd)
            mine = os.open("f", os.O_RDWR)
            os.write(writer, b"waiting")
            take(mine)
            os.write(writer, b"granted")
            os._exit(0)
        assert os.read(reader, 7) == b"waiting"
        os.close(fd)
        assert os.read(reader, 7) == b"granted"
        os.waitpid(pid, 0)


@check("f~1000 g==f")
def locks_hold_over_copies_names_and_sizes() -> None:
    """flock(2), fcntl(2): whatever is done to the file, by whichever name, the locks stay where they are."""
    with opened("f", os.O_RDWR) as fd:
        assert has_flock(fd, fcntl.LOCK_EX)
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 100, 50)
        changes: tuple[Callable[[], object], ...] = (
            lambda: os.chmod("g", 0o600),
            lambda: os.truncate("g", 10),
            lambda: os.rename("g", "h"),
            lambda: os.link("h", "k"),
            lambda: os.unlink("f"),
            lambda: elsewhere(write, "h", b"x" * 500, 0),
        )
        for change in changes:
            change()
            name = "g" if os.path.lexists("g") else "h"
            assert not elsewhere(_takes_flock, name, fcntl.LOCK_EX)
            assert not elsewhere(_takes_record, name, 120, 1)
            assert elsewhere(_takes_record, name, 0, 50)
    assert elsewhere(_takes_record, "h", 120, 1)
    assert elsewhere(_takes_flock, "k", fcntl.LOCK_EX)


@check("f=hello")
def locks_of_a_dead_process_are_free() -> None:
    """flock(2), fcntl(2): locks end with the process that holds them, however it ends."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        fd = os.open("f", os.O_RDWR)
        fcntl.flock(fd, fcntl.LOCK_EX)
        fcntl.lockf(fd, fcntl.LOCK_EX)
        os.write(writer, b"!")
        signal.pause()
    os.read(reader, 1)
    assert not _takes_flock("f", fcntl.LOCK_EX)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert _takes_flock("f", fcntl.LOCK_EX)
    assert _takes_record("f", 0, 0)
