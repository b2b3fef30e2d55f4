"""What a user is told when something fails: one line that names what, where and why, and one that says what to do.

Owns the wording's form and the exit codes. Knows no verb. Only `unionfs.__main__` catches `CommandError` and prints it.
"""

from __future__ import annotations

import os
from typing import Final

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
"""Whoever read our output has gone: 128 + SIGPIPE."""

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


def tell(error: CommandError) -> str:
    """The lines for stderr, without the final newline."""
    return "\n".join([f"unionfs: {error}", *(f"  {line}" for line in error.hint.splitlines())])


class PullFailedError(Exception):
    """Fetching an image failed, and why has been told already."""
