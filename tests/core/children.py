"""Run a function in a forked child: for what would leave this process patched, changed in identity, or dead.

The child is warm (nothing to import), cannot hang (an alarm kills it), and its outcome comes back whole: the value, the
exception with its traceback, or how it died.
"""

from __future__ import annotations

import os
import pickle
import signal
import traceback
from collections.abc import Callable
from typing import NamedTuple

from tests.support.timing import limit

KILLED = 86
"""Exit status of a child that was told to die at a given step."""

_TIMEOUT_S = 120


class Outcome(NamedTuple):
    """`value` if the function returned, else `error`; `status` is the exit status, negative for a signal."""

    status: int
    value: object
    error: str | None


def in_child(function: Callable[[], object]) -> Outcome:
    """Run `function` in a fork of this process; its value must be picklable."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            os.close(read_fd)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(int(limit(_TIMEOUT_S)))
            try:
                answer = pickle.dumps((function(), None))
            except BaseException:  # noqa: BLE001 - the parent shows it; pytest's own handlers must not see it here
                answer = pickle.dumps((None, traceback.format_exc()))
            with os.fdopen(write_fd, "wb") as pipe:
                pipe.write(answer)
            status = 0
        finally:
            os._exit(status)
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as pipe:
        answer = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    value, error = pickle.loads(answer) if answer else (None, None)
    return Outcome(status, value, error)


def expect(outcome: Outcome) -> object:
    """The value of a child that must have succeeded."""
    assert outcome.error is None, outcome.error
    assert outcome.status == 0, f"the child died with status {outcome.status}"
    return outcome.value


def as_user(uid: int, gid: int, function: Callable[[], object]) -> object:
    """The value of `function` run by an ordinary user without groups or capabilities. Precondition: we are root."""

    def run() -> object:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        return function()

    return expect(in_child(run))
