"""How a check is written: the decorator that registers it, and the few words its body needs.

A check is a function without arguments that runs in a child process, in its own directory, and raises AssertionError.
Its docstring names the rule and the manual page. A check may go on after a remount: see `Check.then`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pickle
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from tests.mounted.libc import fallocate

Result = TypeVar("Result")

CHOWN: Final = "chown"
"""Needs several user ids and the right to change to them: root, also root of a user namespace with subordinate ids."""

DEVICES: Final = "devices"
"""Needs to make and open device nodes: root of the first user namespace."""

UNION: Final = "union"
"""Is about unions only, and says nothing of a plain directory."""

STRANGERS: Final = "strangers"
"""Lets other users in: not on a mount of an ordinary user, which fusermount3 closes to everybody else (fuse(4))."""


class MissingError(Exception):
    """The machine lacks what the check needs; its text says what. Reported as a skip."""


@dataclass(slots=True)
class Check:
    """One registered check. `name` is AREA.FUNCTION; `stages` run in order, a remount between each two."""

    name: str
    text: str
    prepare: Callable[[], None] | None
    needs: frozenset[str]
    timeout_s: float
    stages: list[Callable[..., object]] = field(default_factory=list)

    def then(self, stage: Callable[[Any], object]) -> Callable[[Any], object]:
        """Add a stage to run after a remount. It is given what the stage before returned."""
        self.stages.append(stage)
        return stage


REGISTRY: dict[str, Check] = {}


def check(
    text: str = "", *needs: str, prepare: Callable[[], None] | None = None, timeout_s: float = 30.0
) -> Callable[[Callable[[], object]], Check]:
    """Register a function as a check on the tree that `text` describes (see trees.parse).

    `prepare` adds what a text cannot say; it runs in the check's directory of the lowest branch.
    """

    def register(function: Callable[[], object]) -> Check:
        area = function.__module__.rpartition(".")[2]
        assert function.__doc__, f"{function.__name__} names no rule"
        made = Check(f"{area}.{function.__name__}", text, prepare, frozenset(needs), timeout_s, [function])
        assert made.name not in REGISTRY, made.name
        REGISTRY[made.name] = made
        return made

    return register


def same(got: object, want: object, about: object = "") -> None:
    """`got` must equal `want`."""
    if got != want:
        raise AssertionError(f"{about or 'value'}: got {_short(got)}, want {_short(want)}")


def fails(code: int | tuple[int, ...], call: Callable[..., object], *args: Any, **kwargs: Any) -> None:
    """The call must fail with `code`, or with one of several where the manual page allows them."""
    codes = code if isinstance(code, tuple) else (code,)
    told = f"{getattr(call, '__name__', call)}({', '.join(_short(arg) for arg in args)})"
    try:
        result = call(*args, **kwargs)
    except OSError as failure:
        got = failure.errno or 0
        if got not in codes:
            want = "/".join(errno.errorcode[each] for each in codes)
            raise AssertionError(f"{told}: got {errno.errorcode.get(got, got)}, want {want}") from None
        return
    raise AssertionError(f"{told}: gave {_short(result)}, want {'/'.join(errno.errorcode[each] for each in codes)}")


def read(name: str | bytes) -> bytes:
    """All bytes of a file, without following a symbolic link."""
    with opened(name, os.O_RDONLY | os.O_NOFOLLOW) as fd:
        return read_fd(fd)


def read_fd(fd: int) -> bytes:
    """All bytes from the descriptor's position to the end."""
    parts = []
    while part := os.read(fd, 1 << 20):
        parts.append(part)
    return b"".join(parts)


def write(name: str | bytes, data: bytes, flags: int = os.O_CREAT | os.O_TRUNC, mode: int = 0o644) -> None:
    """Write a file as most programs do: open, write, close."""
    with opened(name, os.O_WRONLY | flags, mode) as fd:
        same(os.write(fd, data), len(data), "bytes written")


@contextmanager
def opened(name: str | bytes, flags: int = os.O_RDONLY, mode: int = 0o644) -> Iterator[int]:
    """A descriptor, closed at the end."""
    fd = os.open(name, flags | os.O_CLOEXEC, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def names(directory: str | bytes = ".") -> list[str]:
    """The names in a directory, sorted."""
    return sorted(os.listdir(os.fsdecode(directory)))


def beside(name: str) -> str:
    """A path in a plain directory on the upper's filesystem: what the filesystem itself would do."""
    return os.path.join(os.environ["BESIDE"], f"{os.getpid()}-{name}")


def longest_target() -> int:
    """How long the target of a symbolic link may be: 4095 bytes, or less on some filesystems (xfs)."""
    name = beside("longest")
    try:
        os.symlink("x" * 4095, name)
    except OSError as failure:
        same(failure.errno, errno.ENAMETOOLONG)
        return 1023
    os.unlink(name)
    return 4095


def needs_fallocate(*modes: int) -> None:
    """The check says nothing where the filesystem has not these modes of fallocate(2). Raises: MissingError."""
    for mode in modes:
        with opened(beside("space"), os.O_RDWR | os.O_CREAT) as fd:
            os.truncate(fd, 1 << 16)
            try:
                fallocate(fd, mode, 1 << 13, 1 << 12)
            except OSError as failure:
                same(failure.errno, errno.EOPNOTSUPP)
                raise MissingError(f"the filesystem has no fallocate of mode {mode:#x}") from None


def exists(name: str | bytes) -> bool:
    return os.path.lexists(name)


def elsewhere(
    function: Callable[..., Result], *args: Any, uid: int | None = None, groups: tuple[int, ...] = ()
) -> Result:
    """Run `function` in a forked process, as another user if asked; its result or its exception comes back."""
    from_child, to_parent = os.pipe()
    pid = os.fork()
    if pid == 0:
        outcome: tuple[str, Any]
        try:
            if uid is not None:
                os.setgroups(list(groups))
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
            outcome = ("result", function(*args))
        except OSError as failure:
            outcome = ("errno", failure.errno)
        except BaseException:  # noqa: BLE001 - whatever ended the function is its result
            outcome = ("story", traceback.format_exc())
        os.write(to_parent, pickle.dumps(outcome))
        os._exit(0)
    os.close(to_parent)
    story = read_fd(from_child)
    os.close(from_child)
    _, status = os.waitpid(pid, 0)
    assert story, f"the process ended with status {status} and said nothing"
    kind, value = pickle.loads(story)
    if kind == "errno":
        raise OSError(value, os.strerror(value))
    assert kind == "result", value
    return value  # type: ignore[no-any-return]


def clock_moves(*places: str) -> None:
    """Return when a file made now would carry a later time than everything that happened before.

    Timestamps come from a clock that ticks some hundred times a second (clock_gettime(2), CLOCK_REALTIME_COARSE), so
    two changes in a row may carry the same time; and what was looked at may carry one that this clock has not reached.
    """
    start = time.clock_gettime_ns(time.CLOCK_REALTIME)
    while time.clock_gettime_ns(_COARSE) <= start:
        os.sched_yield()


_COARSE = 5
"""CLOCK_REALTIME_COARSE of <linux/time.h>; Python 3.11 has no name for it."""


def has_flock(fd: int, operation: int) -> bool:
    """Take a flock(2) without waiting; whether it was granted."""
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:200]}... ({len(text)} characters) ...{text[-60:]}"
