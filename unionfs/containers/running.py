"""Running containers: enter one, send it a signal, stop it, wait for its end.

Knows records, namespace sockets and process numbers.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from typing import Final

from unionfs.containers.errors import ContainerError, NoSuchContainerError, NotRunningError
from unionfs.containers.record import Container
from unionfs.containers.store import ContainerStore, outcome
from unionfs.launcher import namespace_socket
from unionfs.launcher.namespace_socket import Namespaces, NotListeningError

_ASK_AGAIN_S: Final = 0.05
_KILLING_S: Final = 90  # seconds for the clean-up of a killed container: a daemon may have much to write back


def enter(container: Container, what: str) -> Namespaces:
    """The namespaces of a running container. `what`: the verb, for errors. Raises: NotRunningError, LaunchError."""
    if container.status != "running":
        hint = f"unionfs start {container.name} starts it"
        raise NotRunningError(what, container.name, "it is not running", hint=hint)
    try:
        return namespace_socket.receive(container.namespace_socket)
    except NotListeningError as error:  # the record said "running" a moment ago: the container is ending
        raise NotRunningError(what, container.name, error.why) from error


def send(container: Container, number: int) -> None:
    """Send a signal to its process 1, which forwards it to the command. Raises: ContainerError if it is not running."""
    pid = container.state.pid
    try:
        if container.status != "running" or pid is None:
            raise ProcessLookupError
        fd = os.pidfd_open(pid)
        try:
            if not container.is_process_one():  # the number may have been reused before we opened it
                raise ProcessLookupError
            signal.pidfd_send_signal(fd, number)
        finally:
            os.close(fd)
    except ProcessLookupError:
        raise ContainerError("sending a signal", container.name, "it is not running") from None
    except OSError as error:
        raise ContainerError.of("sending a signal", error, subject=container.name) from error


def wait_for_start(store: ContainerStore, container: Container) -> None:
    """Wait until another process has started the container: until its command runs or has run.

    Raises: ContainerError if the command was not executed.
    """
    current = container
    while current.status == "starting":
        if not current.is_running():
            break
        time.sleep(_ASK_AGAIN_S)
        current = store.load(container.id)
    if current.status != "running" and current.state.started == container.state.started:
        raise ContainerError("starting the container", container.name, "another process has failed to start it")


def wait(store: ContainerStore, container: Container, timeout_s: float | None = None) -> Container | None:
    """Wait until the container has ended and is cleaned up. Returns its record, or None if it was removed.

    Raises: TimeoutError if it has not ended in time.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        try:
            current = store.load(container.id)
        except NoSuchContainerError:
            return None
        if not current.is_running():
            return current
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError
        _wait_for_process(current.state.monitor or current.state.pid, left)


def wait_for_code(store: ContainerStore, container: Container) -> int | None:
    """Wait until the container has ended. Returns its exit code, also if it was removed; None if its monitor was
    killed."""
    fd = store.open_outcome(container)  # an open descriptor stays readable after the removal
    try:
        ended = wait(store, container)
        if ended is not None and ended.state.exit_code is not None:
            return ended.state.exit_code
        return None if fd is None else outcome(fd)
    finally:
        if fd is not None:
            os.close(fd)


def stop(store: ContainerStore, container: Container, number: int, patience_s: float) -> Container | None:
    """End the container with a signal, and after `patience_s` seconds with SIGKILL. Returns as `wait` does.

    Raises: ContainerError if it cannot be ended.
    """
    if container.status == "running":
        with contextlib.suppress(ContainerError):  # it is ending by itself
            send(container, number)
    with contextlib.suppress(TimeoutError):
        return wait(store, container, patience_s if number != signal.SIGKILL else 0)
    return kill(store, container)


def kill(store: ContainerStore, container: Container) -> Container | None:
    """Kill the container, and wait until it is cleaned up."""
    try:
        current = store.load(container.id)
    except NoSuchContainerError:
        return None
    with contextlib.suppress(ContainerError):
        send(current, signal.SIGKILL)
    try:
        return wait(store, container, _KILLING_S)
    except TimeoutError:
        raise ContainerError("ending the container", container.name, "it is still being cleaned up") from None


def _wait_for_process(pid: int | None, timeout_s: float | None) -> None:
    """Wait until a process has ended; if there is none, wait for a moment."""
    try:
        if pid is None:
            raise ProcessLookupError
        fd = os.pidfd_open(pid)
    except OSError:
        time.sleep(_ASK_AGAIN_S)
        return
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        longest = 1.0 if timeout_s is None else min(timeout_s, 1.0)  # the record may name another process now
        poll.poll(max(longest, 0) * 1000)
    finally:
        os.close(fd)
