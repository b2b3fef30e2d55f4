"""Run code in a forked child with other ids, namespaces or a new session; its failure is raised in the parent."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from types import FrameType

from unionfs.containers.errors import ContainerError
from unionfs.launcher import channel
from unionfs.launcher.channel import FAILED, Message, Sender
from unionfs.launcher.errors import LaunchError


def run(
    body: Callable[[], int], fork: Callable[[Callable[[], int]], int], *, pass_on: Sequence[signal.Signals] = ()
) -> int:
    """Call `body` in the child that `fork` makes (as `userns.fork` does). Returns its exit code, or 128 + the signal
    that killed it. The signals `pass_on` are forwarded to the child unless this process ignores them.

    Raises: ContainerError for ContainerError and LaunchError of `body`, OSError of `body`; LaunchError of `fork`.
    """
    receiver, sender = channel.make()

    def in_child() -> int:
        receiver.close()
        try:
            return body()
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
        except (ContainerError, LaunchError, OSError) as error:
            send_failure(sender, error)
            return 1

    try:
        child = fork(in_child)
    finally:
        sender.close()

    def pass_signal(number: int, _frame: FrameType | None) -> None:
        os.kill(child, number)

    heeded = [
        number for number in pass_on if signal.getsignal(number) != signal.SIG_IGN
    ]  # a background job of a script ignores SIGINT
    before = {number: signal.signal(number, pass_signal) for number in heeded}
    try:
        _, status = os.waitpid(child, 0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        message = receiver.receive()
        receiver.close()
    if message is not None and message.kind == FAILED:
        raise failure_in(message)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def send_failure(sender: Sender, error: ContainerError | LaunchError | OSError) -> None:
    """Send an exception through the pipe, for `failure_in`."""
    if isinstance(error, OSError):
        named = "" if error.filename is None else os.fsdecode(error.filename)
        sender.send(FAILED, "OSError", str(error.errno or 0), error.strerror or str(error), named)
    else:
        subject = error.path if isinstance(error, LaunchError) else error.subject
        sender.send(FAILED, "", error.what, subject, error.why, error.hint, str(error.status))


def failure_in(message: Message) -> ContainerError | OSError:
    """The exception that a process has sent with `send_failure`."""
    if message.fields[0] == "OSError":
        _, number, why, named = message.fields
        return OSError(int(number), why, named or None)
    _, what, subject, why, hint, status = message.fields
    return ContainerError(what, subject, why, hint=hint, status=int(status))
