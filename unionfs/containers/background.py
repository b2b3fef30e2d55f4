"""Run a container or a command in the background: in a separate process, which continues after this one has
returned."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import NoReturn

from unionfs import store_files
from unionfs.containers import forked_calls
from unionfs.containers.errors import ContainerError
from unionfs.containers.record import Container
from unionfs.launcher import channel
from unionfs.launcher.channel import FAILED, STARTED, Sender
from unionfs.launcher.errors import OWN_FAILURE, LaunchError


def run(container: Container, body: Callable[[Callable[[], None]], int], keep: tuple[int, ...] = ()) -> None:
    """Call `body` in a separate process. Return when `body` calls its argument (the command has been executed); raise
    the exception that it raises before. The process prints to the container's daemon.log, and all its descriptors but
    `keep` are closed.

    Raises: ContainerError, OSError.
    """
    receiver, sender = channel.make()
    if os.fork() == 0:
        receiver.close()
        _stay(container, body, sender, keep)
    sender.close()
    message = receiver.wait()
    receiver.close()
    if message is None:
        raise ContainerError("running the container", container.name, "its process ended unexpectedly")
    if message.kind == FAILED:
        raise forked_calls.failure_in(message)


def _stay(
    container: Container, body: Callable[[Callable[[], None]], int], sender: Sender, keep: tuple[int, ...]
) -> NoReturn:
    """The code of that process."""
    status = OWN_FAILURE
    try:
        os.setsid()
        _redirect(container.daemon_log, {sender.fileno(), *keep})
        status = body(lambda: sender.send(STARTED))
    except (ContainerError, LaunchError, OSError) as error:
        forked_calls.send_failure(sender, error)
    finally:
        os._exit(status)


def _redirect(log: str, keep: set[int]) -> None:
    """Redirect standard output and error to `log`, input to a pipe without a writer that stays open as long as this
    process lives (docker's -d -i), and close all inherited descriptors but `keep`."""
    input_fd, write_fd = os.pipe()
    log_fd = store_files.open_file(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(input_fd, 0)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > 2 and fd != write_fd and fd not in keep:
            with contextlib.suppress(OSError):
                os.close(fd)
