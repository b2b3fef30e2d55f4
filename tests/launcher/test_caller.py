"""A held call whose thread was killed: its number may be another process's, which is neither read nor written."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from tests.support import share
from unionfs import markers
from unionfs.launcher.caller import Caller, CallerGoneError
from unionfs.launcher.supervisor import INTERCEPTED, Supervisor
from unionfs.syscalls import seccomp
from unionfs.syscalls.seccomp import Call

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not seccomp.is_available(), reason="needs root and seccomp with a listener"
)

_PATH: Final = b"/etc/hostname\0"
_SIZE: Final = 256
_FILL: Final = _PATH + b"\x55" * (_SIZE - len(_PATH))


def _fork(live: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            live()
        finally:
            os._exit(0)
    return pid


@pytest.fixture
def held() -> Iterator[tuple[int, Call]]:
    """A listener, and a call of a process that was killed before the answer, and is reaped."""
    ours, theirs = socket.socketpair()

    def live() -> None:
        listener = seccomp.install_filter(["getgroups"], {})
        socket.send_fds(theirs, [b"l"], [listener])
        os.getgroups()

    pid = _fork(live)
    _, (listener,), _, _ = socket.recv_fds(ours, 1, 1)
    call = seccomp.receive(listener)
    assert call.thread == pid
    assert seccomp.is_waiting(listener, call)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    yield listener, call
    os.close(listener)
    ours.close()
    theirs.close()


@pytest.fixture
def other() -> Iterator[tuple[int, int]]:
    """A process that has nothing to do with the call: its number, and the address of _FILL in its memory."""
    buffer = ctypes.create_string_buffer(_FILL, _SIZE)
    pid = _fork(signal.pause)
    yield pid, ctypes.addressof(buffer)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@pytest.fixture
def proc_fd() -> Iterator[int]:
    fd = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_nothing_of_a_killed_caller_is_had(held: tuple[int, Call], proc_fd: int) -> None:
    listener, call = held
    assert not seccomp.is_waiting(listener, call)
    with contextlib.closing(Caller(listener, proc_fd, call)) as caller, pytest.raises(CallerGoneError):
        caller.directory_fd()
    with pytest.raises(FileNotFoundError):
        seccomp.answer(listener, call)


def test_no_access_to_a_thread_with_a_reused_number(
    held: tuple[int, Call], other: tuple[int, int], proc_fd: int
) -> None:
    listener, call = held
    pid, address = other
    reused = call._replace(thread=pid)
    uses: tuple[Callable[[Caller], object], ...] = (
        lambda caller: caller.directory_fd(),
        lambda caller: caller.open("cwd"),
        lambda caller: caller.enter_root(),
        lambda caller: caller.umask(),
        lambda caller: caller.program_identity(),
        lambda caller: caller.limit(resource.RLIMIT_RSS),
        lambda caller: caller.set_limit(resource.RLIMIT_RSS, 4096),
        lambda caller: caller.read_memory(address, 4),
        lambda caller: caller.read_string(address),
        lambda caller: caller.write_memory(address, b"new"),
    )
    for use in uses:
        with contextlib.closing(Caller(listener, proc_fd, reused)) as caller, pytest.raises(CallerGoneError):
            use(caller)
    assert resource.prlimit(pid, resource.RLIMIT_RSS)[0] == resource.RLIM_INFINITY
    assert seccomp.read_memory(pid, address, _SIZE) == _FILL


def _arguments(name: str, address: int) -> tuple[int, ...]:
    """Arguments with which the call would change something, or write something back."""
    at = -100 & 0xFFFFFFFFFFFFFFFF
    return {
        "chown": (address, 5, 6), "lchown": (address, 5, 6), "fchown": (0, 5, 6),
        "fchownat": (at, address, 5, 6, 0),
        "mknod": (address, 0o20666, os.makedev(1, 3)), "mknodat": (at, address, 0o20666, os.makedev(1, 3)),
        "stat": (address, address), "lstat": (address, address), "fstat": (0, address),
        "newfstatat": (at, address, address, 0), "statx": (at, address, 0, 0x7FF, address),
        "getresuid": (address, address + 4, address + 8), "getresgid": (address, address + 4, address + 8),
        "getgroups": (8, address), "setgroups": (2, address), "prctl": (8, 1),
        "getrlimit": (resource.RLIMIT_RSS, address), "setrlimit": (resource.RLIMIT_RSS, address),
        "prlimit64": (0, resource.RLIMIT_RSS, address, address),
    }.get(name, (33, 33, 33))  # fmt: skip


@pytest.mark.parametrize("name", share.of(INTERCEPTED))
def test_each_call_leaves_a_thread_with_a_reused_number_alone(
    held: tuple[int, Call], other: tuple[int, int], proc_fd: int, name: str
) -> None:
    """The caller is killed, and its number reused, after each of the looks that the kernel is asked for."""
    listener, call = held
    pid, address = other
    here = seccomp.machine()
    assert here is not None
    if name not in here.numbers:
        pytest.skip("not on this processor")
    changed, answered = 0, 0
    for looks in range(12):
        reused = Call(call.id, pid, here.numbers[name], (*_arguments(name, address), 0, 0, 0)[:6])
        status = os.waitpid(_fork(functools.partial(_answer, listener, proc_fd, reused, looks)), 0)[1]
        code = os.waitstatus_to_exitcode(status)
        assert code in (0, 1, 2), name
        changed += code == 2
        answered += code == 1
    assert changed == 0
    assert answered > 0, "with enough looks the call is answered"
    assert resource.prlimit(pid, resource.RLIMIT_RSS)[0] == resource.RLIM_INFINITY
    assert resource.prlimit(pid, markers.IDENTITY_LIMIT) == resource.getrlimit(markers.IDENTITY_LIMIT)
    assert seccomp.read_memory(pid, address, _SIZE) == _FILL


def _answer(listener: int, proc_fd: int, call: Call, looks: int) -> None:
    """In a process of its own, for its root changes. Ends with 2 when something is written after the last of `looks`
    in which the call still waited, with 1 when it was answered, with 0 when it was dropped."""
    left, writes, answers = looks, 0, 0

    def is_waiting(fd: int, call: Call) -> bool:
        nonlocal left
        assert fd == listener
        left -= 1
        return left >= 0

    def write(*_: object, **__: object) -> None:
        nonlocal writes
        writes += left < 0 or left == looks  # after the caller has gone, or without having looked

    def prlimit(pid: int, number: int, limits: tuple[int, int] | None = None) -> tuple[int, int]:
        if limits is not None:
            write()
        return real_prlimit(pid, number)

    def answer(*_: object, **__: object) -> None:
        nonlocal answers
        answers += 1

    real_prlimit = resource.prlimit
    try:
        os.fchdir(proc_fd)
        supervisor = Supervisor(listener, proc_fd)
        supervisor._owners._stored_owner = lambda path: b"0:0"  # type: ignore[method-assign]  # as on a union
        seccomp.is_waiting, seccomp.write_memory, seccomp.answer = is_waiting, write, answer
        resource.prlimit, os.setxattr = prlimit, write
        from unionfs.syscalls import files

        files.renameat2 = write
        supervisor._answer(call)
    except BaseException as error:  # noqa: BLE001 - the exit code tells
        print(repr(error), file=sys.stderr)
        os._exit(3)
    os._exit(2 if writes else min(answers, 1))
