"""Work of a build in child processes: with all ids of the user, and at the same time.

A child that reads or writes layers must have the ids of their files (`containers.images.with_ids`). Its result is
bytes; `Job.result` raises its exceptions. It is killed when its parent ends.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

from unionfs.containers import forked_calls, images
from unionfs.containers.errors import ContainerError
from unionfs.containers.ids import my_ids
from unionfs.launcher import channel, userns
from unionfs.launcher.channel import FAILED
from unionfs.launcher.errors import LaunchError
from unionfs.launcher.idmap import NamespaceMap
from unionfs.syscalls.namespaces import set_parent_death_signal

_READ: Final = 1 << 20
_IF_FULL: Final = "the filesystem of the store is full: unionfs image prune removes what no image needs"


def failures() -> AbstractContextManager[None]:
    """As `images.failures`, with the words and hint of a build."""
    return images.failures("building", _IF_FULL)


class Job:
    """A function that runs in a child process."""

    def __init__(self, body: Callable[[], bytes], id_map: NamespaceMap | None) -> None:
        """Start it. With an `id_map` the child is root of a user namespace. Raises: LaunchError."""
        self._result_fd, write_fd = os.pipe()
        self._receiver, sender = channel.make()
        parent = os.getpid()

        def in_child() -> int:
            set_parent_death_signal(signal.SIGKILL)
            if os.getppid() != parent:
                return 1
            os.close(self._result_fd)
            self._receiver.close()
            try:
                with failures():
                    data = body()
                with open(write_fd, "wb", closefd=False) as pipe:
                    pipe.write(data)
            except (ContainerError, LaunchError, OSError) as error:
                forked_calls.send_failure(sender, error)
                return 1
            return 0

        try:
            self.pid: Final = userns.fork(id_map, 0, in_child)
        except BaseException:
            os.close(self._result_fd)
            self._receiver.close()
            raise
        finally:
            os.close(write_fd)
            sender.close()
        self._is_over = False

    @property
    def is_ready(self) -> bool:
        """Whether the function has returned or failed."""
        poll = select.poll()
        poll.register(self._result_fd, select.POLLIN)
        return bool(poll.poll(0))

    @property
    def result_fd(self) -> int:
        """A descriptor that is readable or at its end when a part of the result has arrived."""
        return self._result_fd

    def result(self) -> bytes:
        """Wait for the child. Raises: ContainerError, OSError as the function did."""
        with open(self._result_fd, "rb") as pipe:
            data = pipe.read()
        _, status = os.waitpid(self.pid, 0)
        self._is_over = True
        message = self._receiver.receive()
        self._receiver.close()
        if message is not None and message.kind == FAILED:
            raise forked_calls.failure_in(message)
        if status:
            code = os.waitstatus_to_exitcode(status)
            why = f"it was killed by signal {-code}" if code < 0 else f"it ended with status {code}"
            raise ContainerError("build", "", f"a process of the build did not finish: {why}")
        return data

    def end(self) -> None:
        """Kill the child, if its result was not waited for, and wait for its end."""
        if not self._is_over:
            self._is_over = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            os.close(self._result_fd)
            self._receiver.close()


def with_ids(body: Callable[[], bytes]) -> Job:
    """Start a function in a child in which all owners of layers exist."""
    return Job(body, my_ids())


def call(body: Callable[[], bytes]) -> bytes:
    """The result of a function that needs all ids: called in a child, or in this process if it has them.

    Raises: as `Job.result`.
    """
    if my_ids() is None:
        with failures():
            return body()
    job = with_ids(body)
    try:
        return job.result()
    finally:
        job.end()
