"""Convert failures to an exit code and lines: one says what failed, where and why, the others what to do.

A verb raises `CommandError`; other packages raise their own (`FAILURES`). `cli.entry` catches all of them.
"""

from __future__ import annotations

import os
from typing import Final

from unionfs.containers.errors import ContainerError
from unionfs.launcher.errors import LaunchError
from unionfs.printable import printable_line

FAILED: Final = 1
"""The verb failed."""
USAGE: Final = 2
"""Invalid command line (the code of argparse and of shells)."""
OWN_FAILURE: Final = 125
"""`run`, `exec` and `try`: unionfs failed, not the command (docker's and podman's convention)."""
NOT_EXECUTABLE: Final = 126
"""`run`, `exec` and `try`: the command exists but cannot be executed."""
NOT_FOUND: Final = 127
"""`run`, `exec` and `try`: the command does not exist."""
INTERRUPTED: Final = 130
"""Ctrl-C: 128 + SIGINT, as shells report it."""
BROKEN_PIPE: Final = 141
"""The reader of our output has closed it: 128 + SIGPIPE."""

EXIT_CODES: Final = """\
exit codes:
  0    done
  1    failed; the reason is on stderr
  2    invalid command line
  125  run, exec, try, profile: unionfs itself failed
  126  run, exec, try, profile: the command cannot be executed
  127  run, exec, try, profile: the command was not found
       (otherwise these verbs return the command's own code)"""


class CommandError(Exception):
    """An expected failure of a verb: the line `WHAT failed: PATH: WHY`, a hint for the next line, the exit code."""

    def __init__(self, sentence: str, *, hint: str = "", status: int = FAILED) -> None:
        super().__init__(sentence)
        self.hint = hint
        self.status = status

    @classmethod
    def of(cls, what: str, error: OSError, *, hint: str = "", status: int = FAILED) -> CommandError:
        """Make the failure of `what` from `error`, with the path that `error` names, if any."""
        return cls(failed(what, error.filename, error.strerror or str(error)), hint=hint, status=status)


def failed(what: str, path: str | bytes | None, why: str) -> str:
    """The line `WHAT failed: PATH: WHY`; `what` is the attempt in words ("mount", "opening the log")."""
    return ": ".join(filter(None, (f"{what} failed", "" if path is None else os.fsdecode(path), why)))


Failure = CommandError | ContainerError | LaunchError
FAILURES: Final = (CommandError, ContainerError, LaunchError)
"""Exceptions that a verb may raise; any other except OSError is a bug."""


def status_of(error: Failure, *, passes_on_codes: bool = False) -> int:
    """The exit code; 125 or above if the verb returns a command's exit code, to distinguish ours from it."""
    if passes_on_codes:
        return max(error.status, OWN_FAILURE)
    return FAILED if isinstance(error, LaunchError) else error.status or FAILED


def format_failure(error: Failure) -> str:
    """The lines for stderr, without the final newline."""
    hint = [f"  {printable_line(line)}" for line in error.hint.splitlines()]
    return "\n".join([printable_line(f"unionfs: {error}"), *hint])
