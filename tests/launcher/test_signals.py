"""Signals for a container: from `unionfs kill`, and those that `unionfs run` itself gets (podman's sig-proxy)."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import process
from tests.support.marks import as_ordinary_user
from tests.support.timing import limit
from tests.support.users import User
from unionfs.fuse.options import DEFAULT_TRANSPORT

pytestmark = [pytest.mark.transport(DEFAULT_TRANSPORT), as_ordinary_user]

_NOT_FORWARDED = {
    *(signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGPIPE, signal.SIGURG, signal.SIGWINCH),
    *(signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL),
}
_LISTENER = """
import os, signal, time
def note(number, frame):
    os.write(1, b"%d\\n" % number)
for number in signal.valid_signals() - {9, 19, 17}:
    signal.signal(number, note)
os.write(1, b"ready\\n")
while True:
    time.sleep(0.1)  # signal.pause would miss a signal that comes just before it
"""
_COUNTER = "(while :; do echo child; sleep 0.05; done) & while :; do echo parent; sleep 0.05; done"


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + limit(30)
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_run_forwards_what_podman_forwards(user: User, debian: Path, tidy: None) -> None:
    listener = [*user.unionfs_cmd, "run", "--rm", "--lower", os.fspath(debian), "python3", "-c", _LISTENER]
    front = user.popen(listener)
    guard = threading.Timer(limit(60), front.kill)  # a signal that is lost fails the test, and does not hang it
    guard.start()
    try:
        assert front.stdout is not None
        assert front.stdout.readline() == "ready\n"
        for number in sorted(signal.valid_signals() - _NOT_FORWARDED):
            front.send_signal(number)
            assert front.stdout.readline() == f"{number:d}\n"
    finally:
        guard.cancel()
        process.kill_group(front)
        front.communicate()


_SLOW_REPORTS = """
import sys, time
from unionfs.launcher import channel
send = channel.Sender.send
def send_late(self, kind, *fields):
    if kind == channel.INIT:
        time.sleep(0.5)
    send(self, kind, *fields)
channel.Sender.send = send_late
from unionfs.cli import entry
sys.exit(entry.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("verb", ["run", "exec"])
@pytest.mark.parametrize("runtime", ["unionfs", "crun"])
def test_a_signal_at_the_first_word_of_a_command(user: User, debian: Path, tidy: None, verb: str, runtime: str) -> None:
    slow = [sys.executable, "-c", _SLOW_REPORTS]
    listener = ["sh", "-c", "trap 'echo hung up; exit 7' HUP; echo ready; while :; do sleep 0.05; done"]
    run = ["run", "--rm", "--name", "box", "--runtime", runtime, "--lower", os.fspath(debian)]
    if verb == "run":
        front = user.popen([*slow, *run, *listener])
    else:
        user.run([*user.unionfs_cmd, *run[:1], "--detach", *run[1:], "sleep", "1000"])
        front = user.popen([*slow, "exec", "box", *listener])
    assert front.stdout is not None
    assert front.stdout.readline() == "ready\n"
    front.send_signal(signal.SIGHUP)
    assert front.communicate(timeout=limit(30))[0] == "hung up\n"
    assert front.returncode == 7
    if verb == "exec":
        user.run([*user.unionfs_cmd, "rm", "--force", "box"])


@pytest.mark.parametrize("runtime", ["unionfs", "crun"])
def test_stop_and_continue_reach_all_of_a_container(user: User, debian: Path, tidy: None, runtime: str) -> None:
    if runtime != "unionfs" and not shutil.which(runtime):
        pytest.skip(f"{runtime} is not installed")
    words = ("--runtime", runtime, "--lower", debian, "sh", "-c", _COUNTER)
    user.run([*user.unionfs_cmd, "run", "-d", "--name", "c", *words])

    def printed() -> tuple[int, int]:
        lines = user.run([*user.unionfs_cmd, "logs", "c"]).stdout.splitlines()
        return lines.count("parent"), lines.count("child")

    try:
        _until(lambda: min(printed()) > 0)
        user.run([*user.unionfs_cmd, "kill", "-s", "STOP", "c"])
        still = printed()
        _until(lambda: printed() == printed())  # what was in the pipes has arrived
        still = printed()
        time.sleep(0.5)
        assert printed() == still
        user.run([*user.unionfs_cmd, "kill", "-s", "CONT", "c"])
        _until(lambda: all(after > before for after, before in zip(printed(), still, strict=True)))
    finally:
        user.run([*user.unionfs_cmd, "rm", "-f", "c"])


def test_signals_of_job_control_reach_the_command(user: User, debian: Path, tidy: None) -> None:
    user.run([*user.unionfs_cmd, "run", "-d", "--name", "c", "--lower", os.fspath(debian), "python3", "-c", _LISTENER])

    def said() -> list[str]:
        return user.run([*user.unionfs_cmd, "logs", "c"]).stdout.splitlines()

    try:
        _until(lambda: said() == ["ready"])
        expected = ["ready"]
        for name in ("TSTP", "TTIN", "TTOU", "RTMIN+3"):
            user.run([*user.unionfs_cmd, "kill", "-s", name, "c"])
            expected.append(str(37 if name == "RTMIN+3" else int(signal.Signals[f"SIG{name}"])))
            _until(lambda: said() == expected)
    finally:
        user.run([*user.unionfs_cmd, "rm", "-f", "c"])


def test_a_shell_in_the_background_stays(user: User, debian: Path, tidy: None) -> None:
    """`-d -i` keeps standard input open, with and without a terminal; two starts at once both succeed."""
    for name, flags in (("pipe", "-di"), ("tty", "-dit")):
        user.run([*user.unionfs_cmd, "run", flags, "--name", name, "--lower", os.fspath(debian), "sh"])
    try:
        user.run([*user.unionfs_cmd, "exec", "pipe", "true"])
        user.run([*user.unionfs_cmd, "exec", "tty", "true"])
        user.run([*user.unionfs_cmd, "stop", "-t", "0", "pipe"])
        starts = [user.popen([*user.unionfs_cmd, "start", "pipe"]) for _ in range(3)]
        ended = [start.communicate(timeout=limit(60)) for start in starts]
        assert [start.returncode for start in starts] == [0, 0, 0], ended
        user.run([*user.unionfs_cmd, "exec", "pipe", "true"])
    finally:
        user.run([*user.unionfs_cmd, "rm", "-f", "pipe", "tty"])
