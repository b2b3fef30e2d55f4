"""The caches of the kernel: tests that count messages exactly must not run while others drop them."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def _locked(kind: int) -> Iterator[None]:
    with open(__file__, "rb") as file:  # of the checkout: each run of the tests in it waits for the others
        fcntl.flock(file, kind)
        yield


@pytest.fixture
def kept_caches() -> Iterator[None]:
    """No other test drops the caches meanwhile."""
    with _locked(fcntl.LOCK_SH):
        yield


def drop(which: str) -> None:
    """Drop caches, as drop_caches in proc(5) names them: 1, the content of files; 2, names and inodes. Root only."""
    with _locked(fcntl.LOCK_EX), open("/proc/sys/vm/drop_caches", "w") as setting:
        setting.write(which)
