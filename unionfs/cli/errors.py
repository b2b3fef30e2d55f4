"""Failures as lines and exit codes: one line that says what failed, where and why, and lines that say what to do.

A verb raises `CommandError`; the rooms below raise their own (`FAILURES`). `unionfs.__main__` catches all of them.
"""

from __future__ import annotations

import os
from typing import Final

from unionfs.containers.errors import ContainerError
from unionfs.launcher.errors import LaunchError
from unionfs.printable import printable_line

FAILED: Final = 1
"""The verb could not do its work."""
USAGE: Final = 2
"""The command line makes no sense (the code argparse and the shells use)."""
OWN_FAILURE: Final = 125
"""`run`, `exec` and `try`: we failed, not the command (docker's and podman's convention)."""
NOT_EXECUTABLE: Final = 126
"""`run`, `exec` and `try`: the command exists but cannot be executed."""
NOT_FOUND: Final = 127
"""`run`, `exec` and `try`: there is no such command."""
INTERRUPTED: Final = 130
"""Ctrl-C: 128 + SIGINT, as shells report it."""
BROKEN_PIPE: Final = 141
"""The reader of our output has closed it: 128 + SIGPIPE."""

EXIT_CODES: Final = """\
exit codes:
  0    done
  1    failed; the reason is on stderr
  2    the command line makes no sense
  125  run, exec, try: unionfs itself failed
  126  run, exec, try: the command cannot be executed
  127  run, exec, try: the command was not found
       (otherwise run, exec and try pass on the command's own code)"""


class CommandError(Exception):
    """A verb failed as it may: the sentence `WHAT failed: PATH: WHY`, a hint for a line of its own, the exit code."""

    def __init__(self, sentence: str, *, hint: str = "", status: int = FAILED) -> None:
        super().__init__(sentence)
        self.hint = hint
        self.status = status

    @classmethod
    def of(cls, what: str, error: OSError, *, hint: str = "", status: int = FAILED) -> CommandError:
        """`what` failed because of `error`; the path is the one that the error names, if any."""
        return cls(failed(what, error.filename, error.strerror or str(error)), hint=hint, status=status)


def failed(what: str, path: str | bytes | None, why: str) -> str:
    """The sentence `WHAT failed: PATH: WHY`; `what` is the attempt in words ("mount", "opening the log")."""
    return ": ".join(filter(None, (f"{what} failed", "" if path is None else os.fsdecode(path), why)))


Failure = CommandError | ContainerError | LaunchError
FAILURES: Final = (CommandError, ContainerError, LaunchError)
"""What a verb may raise and the user is to read; anything else but OSError is a bug."""


def status_of(error: Failure, *, passes_on_codes: bool = False) -> int:
    """The exit code; 125 or above where the verb passes on that of a command, so that ours are told apart."""
    if passes_on_codes:
        return max(error.status, OWN_FAILURE)
    return FAILED if isinstance(error, LaunchError) else error.status or FAILED


def tell(error: Failure) -> str:
    """The lines for stderr, without the final newline."""
    hint = [f"  {printable_line(line)}" for line in error.hint.splitlines()]
    return "\n".join([printable_line(f"unionfs: {error}"), *hint])
