"""The dispositions of signals that a login shell would give, whatever started the tests (nohup, `&` in a script)."""

from __future__ import annotations

import signal
from typing import Final

_IGNORED_BY_PYTHON: Final = {signal.SIGPIPE, signal.SIGXFSZ}  # at its start; subprocess gives children the defaults
_CANNOT_BE_SET: Final = {signal.SIGKILL, signal.SIGSTOP}


def reset_ignored() -> None:
    """Give each ignored signal its default, and block none. Precondition: this is the main thread.

    What is ignored or blocked is inherited by every child: the tests would send signals that never arrive.
    """
    for number in signal.valid_signals() - _IGNORED_BY_PYTHON - _CANNOT_BE_SET:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # as Python has it where SIGINT was not ignored
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
