"""Kill the daemon of a mount again and again, at random moments, while its keeper has another one continue.

$UNIONFS_TEST_CHAOS, as "50-500", is the milliseconds from one kill to the next, at least and at most: the tests that
mount through MountedSubject then do all they do under it.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from tests.support.timing import limit

_BETWEEN: Final = os.environ.get("UNIONFS_TEST_CHAOS", "")


def is_wanted() -> bool:
    """Whether the tests run under kills."""
    return bool(_BETWEEN)


def keeper(word: str) -> int:
    """The keeper whose command line contains `word`. It begins some milliseconds after the mount."""
    deadline = time.monotonic() + limit(10)
    while time.monotonic() < deadline:
        for comm in Path("/proc").glob("[0-9]*/comm"):
            with suppress(OSError):
                if not comm.read_text().startswith("unionfs-k:"):
                    continue
                if word.encode() in (comm.parent / "cmdline").read_bytes():
                    return int(comm.parent.name)
        time.sleep(0.01)
    raise AssertionError(f"no keeper has {word} in its command line")


def daemon_of(keeper: int) -> int | None:
    """The daemon that a keeper has now; None at the moment in which there is none."""
    try:
        children = Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
    except OSError:
        return None
    for child in children:
        try:
            status = Path(f"/proc/{child}/stat").read_text()
        except OSError:
            continue
        name, _, fields = status.partition(" (")[2].rpartition(") ")
        if name.startswith("unionfs:") and fields[0] not in "ZX":
            return int(child)
    return None


def wait_for_daemon(keeper: int, after: int = 0) -> int:
    """The daemon of a keeper, as soon as it has one, another one than `after`."""
    deadline = time.monotonic() + limit(10)
    while (found := daemon_of(keeper)) in (None, after):
        assert time.monotonic() < deadline, f"process {keeper} has no daemon"
        time.sleep(0.002)
    assert found is not None
    return found


class Killer:
    """Kills the daemons of a keeper, from `start` to `stop`."""

    def __init__(self, keeper: int, between_ms: str = _BETWEEN, seed: int = 1) -> None:
        low, _, high = between_ms.partition("-")
        self._between_s = int(low) / 1000, int(high) / 1000
        self._keeper = keeper
        self._random = random.Random(seed)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._kill, daemon=True)
        self.kills = 0  # changed by the thread; right after `stop`

    def start(self) -> Killer:
        self._thread.start()
        return self

    def stop(self) -> int:
        """Stop, and return how often it has killed."""
        self._over.set()
        self._thread.join()
        return self.kills

    def _kill(self) -> None:
        while not self._over.wait(self._random.uniform(*self._between_s)):
            daemon = daemon_of(self._keeper)
            if daemon is not None:
                with suppress(ProcessLookupError):
                    os.kill(daemon, signal.SIGKILL)
                    self.kills += 1
