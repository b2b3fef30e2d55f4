"""The threads for slow work: how many there are, and that each piece of work is done once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from tests.support.timing import limit
from unionfs.fuse.kernel.workers import Workers


def test_work_waits_for_a_free_thread() -> None:
    """No more threads than allowed; whatever is given is done before `join` returns."""
    workers = Workers(most=3)
    running, most, done = 0, 0, 0
    lock, go = threading.Lock(), threading.Event()

    def work() -> None:
        nonlocal running, most, done
        with lock:
            running += 1
            most = max(most, running)
        go.wait(limit(60))
        with lock:
            running -= 1
            done += 1

    assert all(workers.run(work) for _ in range(20))
    while running < 3:
        time.sleep(0.001)
    go.set()
    workers.join()
    assert (most, done) == (3, 20)


def test_threads_are_used_again() -> None:
    workers = Workers()
    threads: set[threading.Thread] = set()
    for _ in range(50):
        over = threading.Event()

        def work(over: threading.Event = over) -> None:
            threads.add(threading.current_thread())
            over.set()

        workers.run(work)
        assert over.wait(limit(60))
    workers.join()
    assert len(threads) < 5, "one, unless it is slow to come back"


def test_a_thread_without_work_ends_and_another_one_is_started() -> None:
    workers = Workers(idle_s=0)
    threads: list[threading.Thread] = []
    for _ in range(3):
        workers.run(lambda: threads.append(threading.current_thread()))
        while not threads:
            time.sleep(0.001)
        threads.pop().join(limit(60))
    workers.join()


def test_without_a_thread_the_caller_works(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    workers = Workers()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert not workers.run(lambda: None)
    done = threading.Event()
    assert workers.run(done.set)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    second = threading.Event()
    assert workers.run(second.set), "the thread that there is does it"
    workers.join()
    assert done.is_set()
    assert second.is_set()


def test_a_bug_does_not_end_a_thread(expect_log: Callable[[str], AbstractContextManager[list[str]]]) -> None:
    workers = Workers(most=1)
    done = threading.Event()

    def fail() -> None:
        raise ZeroDivisionError

    with expect_log("bug in a thread"):
        workers.run(fail)
        workers.run(done.set)
        workers.join()
    assert done.is_set()
