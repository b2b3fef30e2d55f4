"""Kill the daemon of a mount repeatedly, at random moments; its keeper has another one continue.

$UNIONFS_TEST_CHAOS, such as "50-500", gives the least and the most milliseconds between two kills: then all tests that
mount through MountedSubject run under kills.
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


def mount(word: str) -> str:
    """The process name of the daemon whose command line contains `word`; waits until it has a keeper."""
    deadline = time.monotonic() + limit(10)
    while time.monotonic() < deadline:
        for comm in Path("/proc").glob("[0-9]*/comm"):
            with suppress(OSError):
                name = comm.read_text().strip()
                if name.startswith("unionfs:") and word.encode() in (comm.parent / "cmdline").read_bytes():
                    return name
        time.sleep(0.01)
    raise AssertionError(f"no daemon has {word} in its command line")


def daemon_of(mount: str) -> int | None:
    """The present daemon of a mount; None while there is none."""
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):
            if comm.read_text().strip() == mount and _state_and_parent(int(comm.parent.name))[0] not in "ZX":
                return int(comm.parent.name)
    return None


def keeper_of(mount: str) -> int:
    """The keeper of a mount."""
    return int(_state_and_parent(wait_for_daemon(mount))[1])


def _state_and_parent(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[:2]


def wait_for_daemon(mount: str, after: int = 0) -> int:
    """Wait until a mount has a daemon other than `after`, and return it."""
    deadline = time.monotonic() + limit(10)
    while (found := daemon_of(mount)) in (None, after):
        assert time.monotonic() < deadline, f"{mount} has no daemon"
        time.sleep(0.002)
    assert found is not None
    return found


class Killer:
    """Kills the daemons of a mount, from `start` to `stop`."""

    def __init__(self, mount: str, between_ms: str = _BETWEEN, seed: int = 1) -> None:
        low, _, high = between_ms.partition("-")
        self._between_s = int(low) / 1000, int(high) / 1000
        self._mount = mount
        self._random = random.Random(seed)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._kill, daemon=True)
        self.kills = 0  # changed by the thread; valid after `stop`
        self.is_paused = False  # whether the killing is paused

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
            daemon = daemon_of(self._mount)
            if daemon is not None and not self.is_paused:
                with suppress(ProcessLookupError):
                    os.kill(daemon, signal.SIGKILL)
                    self.kills += 1
