"""A child process that acts under a time limit and tells what it found.

It has a session of its own and dies with its parent: a filesystem that hangs takes along the child and what it started,
not the run. Knows functions and pipes, nothing of benchmarks.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from unionfs.syscalls import namespaces


class FailedError(Exception):
    """Something that is measured failed or did not end in time; the message says what it did."""


def call(act: Callable[[], Any], timeout_s: float) -> Any:
    """What `act` returned in a child process, by way of JSON.

    Raises: FailedError when it fails or does not end in time.
    """
    read_fd, write_fd = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_fd)
        _act_and_exit(act, write_fd)
    os.close(write_fd)
    try:
        told = _read_all(read_fd, timeout_s)
    finally:
        # Ends the child and what it started, also when this process is interrupted.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.close(read_fd)
        _reap(child)
    if told is None:
        raise FailedError(f"did not end within {timeout_s:g} s")
    if not told:
        raise FailedError("the measuring process died")
    answer = json.loads(told)
    if "failed" in answer:
        raise FailedError(answer["failed"])
    return answer["told"]


def die_with_parent() -> None:
    """Have this process killed when its parent ends. For the moment between fork and exec; forgotten with new ids."""
    namespaces.set_parent_death_signal(signal.SIGKILL)


def _reap(child: int) -> None:
    """Wait for a killed child, but not for ever: one that waits for a dead filesystem ends when that is detached."""
    deadline = time.monotonic() + 2
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            return
        time.sleep(0.002)


def _act_and_exit(act: Callable[[], Any], write_fd: int) -> NoReturn:
    answer: dict[str, Any]
    try:
        os.setsid()
        die_with_parent()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.umask(0o022)
        answer = {"told": act()}
    except BaseException as why:  # noqa: BLE001 - the parent tells it
        answer = {"failed": _words(why)}
    try:
        os.write(write_fd, json.dumps(answer).encode())
    finally:
        os._exit(0)


def _words(why: BaseException) -> str:
    if isinstance(why, OSError) and why.strerror:
        return f"{Path(os.fsdecode(why.filename)).name}: {why.strerror}" if why.filename else why.strerror
    where = traceback.extract_tb(why.__traceback__)[-1]
    text = f"{type(why).__name__}: {why} ({Path(where.filename).name}:{where.lineno})"
    detail = getattr(why, "stderr", None)
    return text if not detail else f"{text}: {str(detail).strip()[-300:]}"


def _read_all(fd: int, timeout_s: float) -> bytes | None:
    """Everything until the end of file; None: there was none in time."""
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
