"""Time limits of waits, longer by a factor on machines that are slow (UNIONFS_TEST_TIME_FACTOR=5: emulated ones).

A limit ends a hang; no test asserts a speed. Every wait of the tests has its limit from `limit`, directly or through
`process.run`, `User.run` or the agent, and so has pytest-timeout.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

VARIABLE: Final = "UNIONFS_TEST_TIME_FACTOR"
FACTOR: Final = float(os.environ.get(VARIABLE) or 1)


def limit(seconds: float) -> float:
    """`seconds` on an ordinary machine, in seconds on this one."""
    return seconds * FACTOR


def wait_until(holds: Callable[[], object], what: str, *, within_s: float = 60, pause_s: float = 0.02) -> None:
    """Call `holds` every `pause_s` seconds until it returns true.

    Raises: AssertionError with `what`, when it is not after `limit(within_s)`.
    """
    deadline = time.monotonic() + limit(within_s)
    while not holds():
        assert time.monotonic() < deadline, f"not within {limit(within_s):g} s: {what}"
        time.sleep(pause_s)
