"""Give the tests the dispositions of signals that a login shell gives, also if nohup or a script's `&` started them."""

from __future__ import annotations

import signal
from typing import Final

_IGNORED_BY_PYTHON: Final = {
    signal.SIGPIPE,
    signal.SIGXFSZ,
}  # subprocess resets them
_CANNOT_BE_SET: Final = {signal.SIGKILL, signal.SIGSTOP}


def reset_ignored() -> None:
    """Give each ignored signal its default, and block none. Precondition: this is the main thread.

    Children inherit ignored and blocked signals: signals that the tests send would have no effect.
    """
    for number in signal.valid_signals() - _IGNORED_BY_PYTHON - _CANNOT_BE_SET:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # not set if SIGINT was ignored
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
