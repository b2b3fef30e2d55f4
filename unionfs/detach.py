"""Detach a process from its starter: descriptors, signals, umask (daemon(7))."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable, Set
from contextlib import suppress
from functools import partial
from typing import Final

from unionfs import store_files

_FIRST_AFTER_STDIO: Final = 3


def detach(keep: Set[int | None], log: str | None = None) -> Callable[[], None]:
    """Detach this process: umask, descriptors but those to `keep`, signal handlers and dispositions.

    Returns what replaces the standard descriptors, by `log` or /dev/null: until then errors can be printed.
    Raises: OSError when `log` cannot be opened.
    """
    let_go(keep)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    null_fd = above_stdio(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
    out_fd = null_fd if log is None else above_stdio(_open_log(log))
    return partial(_replace_stdio, null_fd, out_fd, keep)


def let_go(keep: Set[int | None]) -> None:
    """The same but for the standard descriptors and blocked signals: nothing is opened."""
    os.umask(0)
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd >= _FIRST_AFTER_STDIO and fd not in keep:
            with suppress(OSError):  # the descriptor of the listing itself is closed already
                os.close(fd)
    _reset_signals()


def _reset_signals() -> None:
    """Set signals that had a handler, or were ignored by nohup or a script's `&`, to the default, as in daemon(7).

    SIGHUP stays ignored, and SIGPIPE and SIGXFSZ, which Python ignores: these conditions are OSErrors.
    """
    signal.set_wakeup_fd(-1)
    ignored = {signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ}
    for number in signal.valid_signals() - ignored:
        if signal.getsignal(number) not in (signal.SIG_DFL, signal.default_int_handler, None):
            signal.signal(number, signal.SIG_DFL)
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


def _replace_stdio(null_fd: int, out_fd: int, keep: Set[int | None]) -> None:
    for fd, new_fd in ((0, null_fd), (1, null_fd), (2, out_fd)):
        if fd not in keep:
            os.dup2(new_fd, fd)
    for fd in {null_fd, out_fd}:
        os.close(fd)


def above_stdio(fd: int) -> int:
    """Return `fd`, duplicated above 2 if it is one of 0 to 2, which the caller may have closed."""
    if fd >= _FIRST_AFTER_STDIO:
        return fd
    moved: int = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_AFTER_STDIO)
    os.close(fd)
    return moved


def _open_log(path: str) -> int:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    if os.path.dirname(path) == "/dev":  # /dev/null, /dev/stderr
        return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o600)
    return store_files.open_file(path, flags)
