"""Call a function in a child process under a time limit, and return its result.

The child has a session of its own and dies with its parent: a filesystem that hangs ends the child and the processes
that it started, not the run.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from unionfs.syscalls import mountinfo, mounts, namespaces


class FailedError(Exception):
    """A measured system failed or did not end in time; the message says how."""


def call(function: Callable[[], Any], timeout_s: float) -> Any:
    """Call `function` in a child process and return its result, which must be JSON.

    Raises: FailedError when it fails or does not end in time.
    """
    read_fd, write_fd = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_fd)
        _call_and_exit(function, write_fd)
    os.close(write_fd)
    try:
        output = _read_all(read_fd, timeout_s)
    finally:
        # Ends the child and its descendants, also when this process is interrupted.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.close(read_fd)
        _reap(child)
    if output is None:
        raise FailedError(f"did not end within {timeout_s:g} s")
    if not output:
        raise FailedError("the measuring process died")
    answer = json.loads(output)
    if "failed" in answer:
        raise FailedError(answer["failed"])
    return answer["result"]


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent ends, until its credentials change; for after a fork."""
    namespaces.set_parent_death_signal(signal.SIGKILL)


def unshare_mounts(*, in_user_namespace: bool) -> None:
    """Move this process to a mount namespace of its own, from which no mount spreads; with `in_user_namespace` to a
    user namespace as well, in which it is root. Raises: OSError."""
    uid, gid = os.geteuid(), os.getegid()
    namespaces.unshare(namespaces.CLONE_NEWNS | (namespaces.CLONE_NEWUSER if in_user_namespace else 0))
    if in_user_namespace:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
        die_with_parent()  # the new credentials have reset it
    mounts.mount(None, "/", None, mounts.MS_REC | mounts.MS_PRIVATE)


def enter_namespaces(directory: Path, *, in_user_namespace: bool) -> None:
    """Enter namespaces as `unshare_mounts` does; `directory`, Python and this code stay accessible. If that is not
    allowed, mounts are made in the machine's namespace, and the next run removes them if this one is killed.

    Other unions are unmounted in the new namespace: a copy of their mounts would keep their daemons alive.
    """
    try:
        unshare_mounts(in_user_namespace=in_user_namespace)
    except OSError:
        return
    needed = [Path(path).resolve() for path in (directory, sys.prefix, __file__)]
    for mount in mountinfo.mounts():
        if mount.fstype == "fuse.unionfs" and not any(path.is_relative_to(mount.mountpoint) for path in needed):
            with contextlib.suppress(OSError):  # a user namespace may not unmount inherited mounts
                mounts.umount2(mount.mountpoint, mounts.MNT_DETACH)


def _reap(child: int) -> None:
    """Wait for a killed child, but not for ever: one that waits for a dead filesystem ends when that is detached."""
    deadline = time.monotonic() + 2
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            return
        time.sleep(0.002)


def _call_and_exit(function: Callable[[], Any], write_fd: int) -> NoReturn:
    answer: dict[str, Any]
    try:
        os.setsid()
        die_with_parent()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.umask(0o022)
        answer = {"result": function()}
    except BaseException as why:  # noqa: BLE001 - the parent raises it
        answer = {"failed": _words(why)}
    try:
        os.write(write_fd, json.dumps(answer).encode())
    finally:
        os._exit(0)


def _words(why: BaseException) -> str:
    if isinstance(why, FailedError):
        return str(why)
    if isinstance(why, OSError) and why.strerror:
        return f"{Path(os.fsdecode(why.filename)).name}: {why.strerror}" if why.filename else why.strerror
    where = traceback.extract_tb(why.__traceback__)[-1]
    text = f"{type(why).__name__}: {why} ({Path(where.filename).name}:{where.lineno})"
    detail = getattr(why, "stderr", None)
    return text if not detail else f"{text}: {str(detail).strip()[-300:]}"


def _read_all(fd: int, timeout_s: float) -> bytes | None:
    """Read until the end of file; None: it did not come in time."""
    deadline = time.monotonic() + timeout_s
    whole = b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([fd], [], [], left)[0]:
            return None
        chunk = os.read(fd, 65536)
        if not chunk:
            return whole
        whole += chunk
