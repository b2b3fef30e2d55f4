"""Fork a process that is root of a new user namespace; without an id map, as root, simply fork it.

Knows namespaces and id maps. Does not know the purpose of the process. Precondition: this process has one thread.
fork(2) copies the calling thread only, and unshare(2) of a user namespace fails in a process with several.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable

from unionfs.launcher import idmap, namespace_settings
from unionfs.launcher.errors import OWN_FAILURE, SEE_DOCTOR, LaunchError
from unionfs.syscalls.namespaces import CLONE_NEWUSER, unshare

_GO = b"g"


def fork(id_map: idmap.NamespaceMap | None, kinds: int, body: Callable[[], int]) -> int:
    """Fork a child with new namespaces of `kinds` (CLONE_NEW*) that exits with what `body` returns. Returns its pid.

    With an `id_map` the child has all capabilities in a new user namespace with these ids, and the first id of the map
    (root, except in `own_ids`). When this returns the child has its namespaces and ids. It leads a session of its own
    and has every signal at its default. An exception that escapes from `body` is a bug: traceback, exit 125. Raises:
    LaunchError when the namespaces or the map are refused; no child is left then.
    """
    _flush()  # else the child would print buffered output a second time
    parent, child = _pipes()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    pid = os.fork()
    if pid == 0:
        _run_child(id_map, kinds, body, child, parent)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    child.close()
    try:
        _map_ids(pid, id_map, parent)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    finally:
        parent.close()
    return pid


def end(pid: int) -> None:
    """Kill a child and wait for its end. Does nothing if it has been waited for already."""
    with contextlib.suppress(ChildProcessError):
        if os.waitpid(pid, os.WNOHANG) == (0, 0):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def call(id_map: idmap.NamespaceMap | None, function: Callable[[], bytes], kinds: int = 0) -> bytes:
    """Call `function` in a child that is root of a user namespace with these ids, and of new namespaces of `kinds`, and
    return its result.

    For work on files of subordinate ids. Without an `id_map` the caller is root, and `function` is called here.
    Raises: OSError that `function` raised (errno and first file name only), LaunchError when the child could not be
    made or ended in any other way.
    """
    if id_map is None:
        return function()
    read_fd, write_fd = os.pipe()

    def body() -> int:
        try:
            outcome = b"+" + function()
        except OSError as error:
            outcome = b"-%d\0%s" % (error.errno or errno.EIO, os.fsencode(error.filename or ""))
        with open(write_fd, "wb") as pipe:
            pipe.write(outcome)
        return 0

    with open(read_fd, "rb") as pipe:
        try:
            pid = fork(id_map, kinds, body)
        finally:
            os.close(write_fd)
        outcome = pipe.read()
    os.waitpid(pid, 0)
    if outcome.startswith(b"+"):
        return outcome[1:]
    if outcome.startswith(b"-"):
        code, _, name = outcome[1:].partition(b"\0")
        raise OSError(int(code), os.strerror(int(code)), os.fsdecode(name) or None)
    raise LaunchError("working in a user namespace", "", "the child process ended unexpectedly")


class _Ends:
    """The pipe ends of the parent or of the child: one to read from, one to write to."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self.read_fd = read_fd
        self.write_fd = write_fd

    def close(self) -> None:
        os.close(self.read_fd)
        os.close(self.write_fd)


def _pipes() -> tuple[_Ends, _Ends]:
    up_read, up_write = os.pipe()
    down_read, down_write = os.pipe()
    return _Ends(up_read, down_write), _Ends(down_read, up_write)


def _run_child(
    id_map: idmap.NamespaceMap | None, kinds: int, body: Callable[[], int], own: _Ends, parents: _Ends
) -> None:
    """Run `body` in the new namespaces and exit with its result, or 125 after a traceback. Never returns."""
    status = OWN_FAILURE
    try:
        parents.close()
        os.setsid()
        _unshare(id_map, kinds, own)
        reset_signals()  # while the parent maps the ids; all are blocked until then
        if _take_ids(id_map, own):
            status = body()
    except BaseException:  # noqa: BLE001 - a forked child must not run its parent's handlers and cleanups
        import traceback

        traceback.print_exc()
    finally:
        try:
            _flush()
        finally:
            os._exit(status)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream:  # None when it was closed before Python began
            with contextlib.suppress(OSError):
                stream.flush()


def _unshare(id_map: idmap.NamespaceMap | None, kinds: int, own: _Ends) -> None:
    """Make the namespaces, and tell the parent."""
    try:
        unshare(kinds | (CLONE_NEWUSER if id_map else 0))
    except OSError as error:
        os.write(own.write_fd, b"%d" % (error.errno or errno.EIO))
    else:
        os.write(own.write_fd, b"0")


def _take_ids(id_map: idmap.NamespaceMap | None, own: _Ends) -> bool:
    """Wait for the parent to map the ids, and take them. False when the parent failed or has ended."""
    may_continue = os.read(own.read_fd, 1) == _GO
    own.close()
    if may_continue and id_map:
        uid, gid = id_map.uids[0].inside, id_map.gids[0].inside
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        if not id_map.limited and not id_map.keeps_groups:
            os.setgroups([])
    return may_continue


def _map_ids(pid: int, id_map: idmap.NamespaceMap | None, parent: _Ends) -> None:
    """In the parent: wait for the child's namespaces, write its id maps, tell it to continue."""
    code = int(os.read(parent.read_fd, 16) or b"%d" % errno.EIO)
    if code:
        change = namespace_settings.change_that_allows(namespace_settings.read()) if id_map else ""
        hint = f"ask the administrator of {os.uname().nodename} for: sysctl -w {change}" if change else SEE_DOCTOR
        raise LaunchError("making namespaces", "", _why_refused(code, id_map), hint=hint)
    if id_map:
        idmap.write(pid, id_map)
    os.write(parent.write_fd, _GO)


def _why_refused(code: int, id_map: idmap.NamespaceMap | None) -> str:
    kind = "user namespaces" if id_map else "namespaces"
    if code in (errno.EPERM, errno.EACCES):
        return f"this machine does not let this user make {kind} ({os.strerror(code)})"
    if code == errno.ENOSPC:
        return f"the limit of {kind} is reached (sysctl user.max_user_namespaces and the like)"
    return os.strerror(code)


def reset_signals() -> None:
    """Set every signal to its default and unblock all, as a new program expects. Python itself ignores SIGPIPE."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(number) not in (signal.SIG_DFL, None):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
