"""Errors about layers and images: each is a sentence, a hint, and the exit code of the command.

Knows no terminal: the command lines print these and exit. Plain OSErrors of the disk pass through unwrapped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final

from unionfs.printable import printable, printable_line

EXIT_CODES: Final = """\
exit codes:
  0  done
  1  failed; the reason is on stderr
  2  the command line is invalid, or a reference is malformed
  3  check, diff, verify, inspect --min-efficiency: something was found
  4  refused: content that is malformed, dangerous or too large, or does not match its digest
  5  there is no such image, tag, layer or blob
  6  a registry could not be reached, or answered with an error
  7  a registry requires (other) credentials"""

FOUND: Final = 3
"""Exit code of commands that search for faults or differences and found some."""


class LayerError(Exception):
    """`what` failed on `subject` because of `why`; `hint` says what to do about it."""

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, subject: str, why: str, *, hint: str = "") -> None:
        super().__init__(what, subject, why, hint)
        self.what = what
        self.subject = subject
        self.why = why
        self.hint = hint

    def __reduce__(self) -> tuple[Callable[..., LayerError], tuple[object, ...]]:
        return _sent, (type(self), *self.args)  # from a child process

    def __str__(self) -> str:
        return ": ".join(
            part for part in (f"{self.what} failed", printable(self.subject), printable_line(self.why)) if part
        )


def _sent(kind: type[LayerError], what: str, subject: str, why: str, hint: str) -> LayerError:
    return kind(what, subject, why, hint=hint)


class Malformed(LayerError):  # noqa: N818 - reads as what it says: raise Malformed(...)
    """A reference, a digest or a command line is malformed."""

    exit_code = 2


class Refused(LayerError):  # noqa: N818
    """Content is malformed, dangerous, too large, or does not match its digest, and was refused."""

    exit_code = 4


class NotFound(LayerError):  # noqa: N818
    """There is no such image, tag, layer or blob."""

    exit_code = 5


class RegistryError(LayerError):
    """A registry cannot be reached or refuses."""

    exit_code = 6


class AuthError(LayerError):
    """A registry requires credentials, or refuses the given ones."""

    exit_code = 7
