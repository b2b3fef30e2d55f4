"""Child processes that cannot hang a test: every wait has a time limit, after which the whole process group is killed.

A program stuck in a system call on a dead mount still dies of SIGKILL. Its children are in its process group; a daemon
that has left the group and kept our pipes is reported, not waited for.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.timing import limit

DEFAULT_TIMEOUT_S = 60.0
"""Seconds: long enough for a loaded machine with two cores."""

_AFTER_KILL_S = 5.0


class ChildError(AssertionError):
    """A child process failed or did not end. The message holds its command and everything it printed."""


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    stdin: str | None = None,
    cwd: Path | str | None = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    check: bool = True,
    pass_fds: Sequence[int] = (),
) -> subprocess.CompletedProcess[str]:
    """Run `argv` to its end in a session of its own. Bytes of the output that are not UTF-8 become surrogates.

    Raises: ChildError when it does not end within `timeout_s`, or when `check` and it ends with other than 0.
    """
    command = [os.fspath(arg) for arg in argv]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="surrogateescape",
        cwd=cwd,
        env=env,
        start_new_session=True,
        pass_fds=pass_fds,
    )
    with process:
        try:
            out, err = process.communicate(stdin, timeout=limit(timeout_s))
        except subprocess.TimeoutExpired:
            out, err, held = _end(process)
            raise ChildError(story(command, f"did not end within {limit(timeout_s):g} s{held}", out, err)) from None
        except BaseException:
            _end(process)
            raise
    if check and process.returncode != 0:
        raise ChildError(story(command, f"ended with {process.returncode}", out, err))
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def kill_group(process: subprocess.Popen[str]) -> None:
    """SIGKILL the process group that `process` leads, if there still is one."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _end(process: subprocess.Popen[str]) -> tuple[str, str, str]:
    kill_group(process)
    try:
        out, err = process.communicate(timeout=limit(_AFTER_KILL_S))
    except subprocess.TimeoutExpired:
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        return "", "", ", and a descendant outside its process group keeps its output open"
    return out, err, ""


def story(command: list[str], what: str, out: str, err: str) -> str:
    """The message of a ChildError."""
    return f"{' '.join(command)}: {what}\n--- stdout\n{out}\n--- stderr\n{err}".encode(errors="replace").decode()
