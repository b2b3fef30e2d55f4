"""The process that acts for a test: under one identity, in one user and mount namespace, one forked child for each job.

The test process never touches a mount. It sends a function and its arguments; the agent forks, the child runs it and
sends back what came of it. A child that does not end in time is killed with everything it started. A child that cannot
be killed (it waits for a daemon that does not answer, fuse(4)) is reported as stuck and left to the one who aborts the
connection.

Started as `python -m tests.mounted.agent FD`; talks pickles over that socket.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from tests.mounted import checks, trees
from tests.mounted.checking import REGISTRY, MissingError
from tests.support import timing
from tests.support.timing import limit

_REAP_S = 3.0
_GRACE_S = 20.0


class Outcome(NamedTuple):
    """What came of a job. `kind`: done, failed (the story says how), missing (it says what), stuck."""

    kind: str
    value: Any = None
    story: str = ""

    def result(self) -> Any:
        """What the function returned. Raises: FailedError, MissingError."""
        if self.kind == "missing":
            raise MissingError(self.story)
        if self.kind != "done":
            raise FailedError(f"{self.kind}: {self.story}")
        return self.value


class Job(NamedTuple):
    """A function that can be found by its module and name, run in `cwd`."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    cwd: str | None
    timeout_s: float


class FailedError(AssertionError):
    """A job did not do what it should; the text is the child's traceback."""


class Agent:
    """The test's end: starts an agent under an identity and gives it jobs, one at a time."""

    def __init__(self, prefix: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
        """`prefix` is the command that takes on the identity (setpriv, unshare ...); `log` gets what jobs print."""
        ours, theirs = socket.socketpair()
        with ours, theirs, log.open("ab") as out:
            self._process = subprocess.Popen(
                [*prefix, sys.executable, "-m", __name__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd="/", start_new_session=True,
                pass_fds=[theirs.fileno()],
                env={**env, "PYTHONDONTWRITEBYTECODE": "1", timing.VARIABLE: str(timing.FACTOR)},
            )  # fmt: skip
            self._connection: Connection = Connection(ours.detach())
        self._log = log
        if not self._connection.poll(limit(_GRACE_S)) or self._receive() != "ready":
            self.close()
            raise FailedError(f"no agent: {' '.join(prefix)}: {log.read_text(errors='replace')[-2000:]}")

    def try_call(
        self, function: Callable[..., Any], *args: Any, cwd: str | Path | None = None, timeout_s: float = 30.0
    ) -> Outcome:
        """Run `function` in a child of the agent; never raises for what the function does."""
        timeout_s = limit(timeout_s)
        self._connection.send(Job(function, args, None if cwd is None else str(cwd), timeout_s))
        if not self._connection.poll(timeout_s + limit(_GRACE_S)):
            return Outcome("stuck", story="the agent itself does not answer")
        outcome = self._receive()
        if not isinstance(outcome, Outcome):
            return Outcome("stuck", story=f"the agent is gone: {self._log.read_text(errors='replace')[-2000:]}")
        return outcome

    def call(
        self, function: Callable[..., Any], *args: Any, cwd: str | Path | None = None, timeout_s: float = 30.0
    ) -> Any:
        """Run `function` in a child of the agent. Raises: FailedError, MissingError."""
        return self.try_call(function, *args, cwd=cwd, timeout_s=timeout_s).result()

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        self._connection.close()
        try:
            self._process.wait(limit(_REAP_S))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(limit(_REAP_S))

    def _receive(self) -> object:
        try:
            return self._connection.recv()
        except (EOFError, ConnectionError):
            return None


def command(
    argv: Sequence[str], env: Mapping[str, str] | None = None, timeout_s: float = 30.0
) -> subprocess.CompletedProcess[str]:
    """As a job: run a program to its end, until nobody holds its output any more. `env` is added to the environment."""
    return subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit(timeout_s), check=False,
        env={**os.environ, **(env or {})},
    )  # fmt: skip


def run_stage(name: str, stage: int, state: object) -> object:
    """As a job: one stage of the check called `name`, in the current directory."""
    function = REGISTRY[name].stages[stage]
    return function(state) if stage else function()


def build(names: Sequence[str], branches: Sequence[Path], dialects: Sequence[str]) -> None:
    """As a job: make what the named checks want to find, each in a directory of its name, in one branch or more."""
    os.umask(0o022)
    for name in names:
        check = REGISTRY[name]
        items = trees.parse(check.text)
        places = [branch / name for branch in branches]
        places[-1].mkdir()
        if len(branches) == 1:
            trees.make(items, places[0])
        else:
            trees.spread(items, places, dialects)
        if check.prepare is not None:
            os.chdir(places[-1])
            check.prepare()


def load_checks() -> None:
    """Import every module of checks, which registers what is in it."""
    for module in pkgutil.iter_modules(checks.__path__):
        importlib.import_module(f"{checks.__name__}.{module.name}")


def _serve(connection: Connection) -> None:
    load_checks()
    os.umask(0o022)
    connection.send("ready")
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        connection.send(_run(job, connection))


def _run(job: Job, connection: Connection) -> Outcome:
    from_child, to_parent = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(from_child)
        connection.close()
        os.setsid()
        _child(job, Connection(to_parent, readable=False))
        os._exit(0)
    os.close(to_parent)
    with Connection(from_child, writable=False) as reader:
        deadline = time.monotonic() + job.timeout_s
        outcome = Outcome("failed", story=f"did not end within {job.timeout_s:g} s")
        if reader.poll(job.timeout_s):
            try:
                outcome = reader.recv()
            except EOFError:
                outcome = Outcome("failed", story="the child died without a word")
        timed_out = time.monotonic() >= deadline
    return _reap(pid, outcome, timed_out)


def _reap(pid: int, outcome: Outcome, timed_out: bool) -> Outcome:
    """Wait for the child's end, and kill whatever is left of its process group."""
    pidfd = os.pidfd_open(pid)
    try:
        if timed_out or not select.select([pidfd], [], [], limit(_REAP_S))[0]:
            os.killpg(pid, signal.SIGKILL)
        if not select.select([pidfd], [], [], limit(_REAP_S))[0]:
            where = Path(f"/proc/{pid}/wchan").read_text()
            return Outcome("stuck", story=f"{outcome.story}; it cannot be killed, and waits in {where}")
    finally:
        os.close(pidfd)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return outcome._replace(story=f"{outcome.story} (wait status {status})") if status else outcome


def _child(job: Job, writer: Connection) -> None:
    try:
        if job.cwd is not None:
            os.chdir(job.cwd)
        writer.send(Outcome("done", job.function(*job.args)))
    except MissingError as missing:
        writer.send(Outcome("missing", story=str(missing)))
    except BaseException:  # noqa: BLE001 - whatever ended the check is its result
        writer.send(Outcome("failed", story=traceback.format_exc()))


if __name__ == "__main__":
    from tests.mounted.agent import _serve as serve  # the module under its real name, as pickled jobs refer to it

    serve(Connection(int(sys.argv[1])))
