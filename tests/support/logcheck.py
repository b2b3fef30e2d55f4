"""Fail a test in which a warning is logged that the test has not announced.

The fixture `expect_log(pattern)` announces one: within its block at least one record must match, and matching records
are allowed. Only records of this process are checked; a daemon's log is checked by the code that starts the daemon.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest


class _Watch(logging.Handler):
    """Collects records of WARNING and above that no test has announced."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.unexpected: list[str] = []  # changed by emit and _judge only
        self.announced: list[tuple[re.Pattern[str], int, list[str]]] = []  # changed by _expect_log only

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        for pattern, level, seen in self.announced:
            if record.levelno >= level and pattern.search(message):
                seen.append(message)
                return
        self.unexpected.append(f"{record.name} {record.levelname}: {message}")


_watch = _Watch()


@contextmanager
def _expect_log(pattern: str, level: int = logging.WARNING) -> Iterator[list[str]]:
    """Within the block a record of at least `level` must match `pattern` (re.search); yields the messages that did."""
    seen: list[str] = []
    announcement = (re.compile(pattern), level, seen)
    _watch.announced.append(announcement)
    try:
        yield seen
    finally:
        _watch.announced.remove(announcement)
    assert seen, f"no log record of level {logging.getLevelName(level)} or above matches {pattern!r}"


@pytest.fixture(name="expect_log")
def _expect_log_fixture() -> Callable[..., AbstractContextManager[list[str]]]:
    """`with expect_log(pattern): ...`: within the block a warning is expected."""
    return _expect_log


def _judge(phase: str) -> None:
    unexpected, _watch.unexpected = _watch.unexpected, []
    if unexpected:
        pytest.fail(f"unexpected in the log during {phase}:\n" + "\n".join(unexpected), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, None, None]:
    logging.getLogger().addHandler(_watch)
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    result = yield
    _judge("the test")
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None, None, None]:
    try:
        result = yield
        _judge("its set-up or tear-down")
    finally:
        _watch.unexpected.clear()
        logging.getLogger().removeHandler(_watch)
    return result
