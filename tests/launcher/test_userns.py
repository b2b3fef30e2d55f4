"""Work in a user namespace, done by a child."""

from __future__ import annotations

import errno
import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from unionfs.launcher import idmap, userns
from unionfs.launcher.errors import LaunchError
from unionfs.syscalls.namespaces import CLONE_NEWNS

ONE_ID = idmap.single(os.geteuid(), os.getegid(), "a test")


def test_the_result_of_the_child_is_returned() -> None:
    assert userns.call(ONE_ID, lambda: b"%d %d" % (os.getuid(), os.getgid())) == b"0 0"
    assert userns.call(ONE_ID, lambda: b"") == b""
    assert userns.call(ONE_ID, lambda: b"x" * 1_000_000) == b"x" * 1_000_000


def test_root_needs_no_child() -> None:
    assert userns.call(None, lambda: b"%d" % os.getpid()) == b"%d" % os.getpid()


def test_an_error_of_the_child_is_raised_unchanged(tmp_path: Path) -> None:
    missing = tmp_path / "mi\udcffssing"
    with pytest.raises(FileNotFoundError) as caught:
        userns.call(ONE_ID, missing.read_bytes)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, str(missing))


def test_a_child_that_is_killed_is_an_error() -> None:
    def die() -> bytes:
        os.kill(os.getpid(), signal.SIGKILL)
        return b""

    with pytest.raises(LaunchError, match="ended unexpectedly"):
        userns.call(ONE_ID, die)


def test_a_bug_in_the_child_is_an_error_and_does_not_run_our_cleanups(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    witness = tmp_path / "witness"
    try:
        with pytest.raises(LaunchError, match="ended unexpectedly"):
            userns.call(ONE_ID, lambda: b"%d" % (1 // 0))
    finally:
        with witness.open("a") as file:
            file.write("once ")
    assert witness.read_text() == "once "
    assert "ZeroDivisionError" in capfd.readouterr().err


def _children() -> set[str]:
    """The processes that this one has started and not waited for: field 4 of proc_pid_stat(5) is the parent."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == os.getpid():
                    found.add(entry.name)
    return found


def test_no_zombie_and_no_descriptor_is_left() -> None:
    before, children = os.listdir("/proc/self/fd"), _children()  # other tests' may still be there
    userns.call(ONE_ID, lambda: b"")
    with pytest.raises(OSError):
        userns.call(ONE_ID, Path("/proc/missing").read_bytes)
    assert os.listdir("/proc/self/fd") == before
    assert _children() <= children


def test_namespaces_are_new_and_signals_as_a_program_expects_them() -> None:
    def look() -> bytes:
        ignored = [number for number in signal.valid_signals() if signal.getsignal(number) == signal.SIG_IGN]
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        return (
            f"{os.readlink('/proc/self/ns/mnt')} {len(ignored)} {len(blocked)} {os.getsid(0) == os.getpid()}".encode()
        )

    read_fd, write_fd = os.pipe()
    pid = userns.fork(ONE_ID, CLONE_NEWNS, lambda: 0 if os.write(write_fd, look()) else 1)
    assert os.waitpid(pid, 0)[1] == 0
    namespace, *rest = os.read(read_fd, 1000).decode().split()
    os.close(read_fd)
    os.close(write_fd)
    assert namespace != os.readlink("/proc/self/ns/mnt")
    assert rest == ["0", "0", "True"]
