"""Run a container and wait for it: the process the user started, in the host's namespaces.

It forks the monitor, then relays: bytes if there is a terminal, signals to the container's init, and at the end the
exit code. Nothing is imported here that a container without a terminal does not need.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Final, NamedTuple

from unionfs import standard_descriptors
from unionfs.launcher import channel, mapped
from unionfs.launcher import plan as plans
from unionfs.launcher.channel import FAILED, INIT, STARTED, Message, Receiver, Sender, failure_in
from unionfs.launcher.errors import LaunchError
from unionfs.launcher.init import exit_status
from unionfs.launcher.monitor import Hooks, Monitor
from unionfs.launcher.spec import Spec

if TYPE_CHECKING:
    from unionfs.launcher.capture import Capture, Keep
    from unionfs.launcher.namespace_socket import Namespaces
    from unionfs.launcher.terminal import Handover, Relay

_FORWARDED: Final = (
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM),
)
_ENDING_S: Final = 10  # for processes that are being killed; longer than that, one hangs in the kernel
_OF_TERMINALS: Final = (signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT)


def launch(
    spec: Spec,
    hooks: Hooks,
    ready: Callable[[], None] = lambda: None,
    keep: Keep | None = None,
    *,
    attached: bool = True,
) -> int:
    """Run the container until its command ends; the command's exit code, or 128 and the signal that killed it.

    `ready` is called when the command has been executed. `keep` is given all that it prints; unless `attached`, that is
    shown nowhere else. Nothing of the container is left when this returns or raises.
    Raises: LaunchError when the command could not be executed, or the container had to be ended.
    """

    def be_monitor(ends: _Ends) -> int:
        return Monitor(spec, hooks, ends.sender, ends.alive_fd, ends.handover, ends.capture).run()

    kinds = plans.flags(plans.make(spec).outer)
    try:
        return _launch(spec, kinds, be_monitor, ready, _Output(keep, attached))
    except OSError as error:
        raise LaunchError.of("running the container", error) from error


def join(spec: Spec, namespaces: Namespaces, ready: Callable[[], None] = lambda: None, *, attached: bool = True) -> int:
    """Run one more command in a container that runs; its exit code, as `launch` has it. `namespaces` are closed.

    Unless `attached`, what it prints is lost, and it goes on when this process is killed.
    Raises: LaunchError when the command could not be executed.
    """
    from unionfs.launcher.exec_process import Visitor

    def be_visitor(ends: _Ends) -> int:
        return Visitor(spec, namespaces, ends.sender, ends.handover, ends.capture, not attached).run()

    try:
        return _launch(spec._replace(id_map=None), 0, be_visitor, ready, _Output(None, attached), namespaces.close)
    except OSError as error:
        raise LaunchError.of("running in the container", error) from error


class _Output(NamedTuple):
    """What becomes of what the command prints."""

    keep: Keep | None
    attached: bool


class _Ends(NamedTuple):
    """What the process between us and the command has of ours."""

    sender: Sender
    alive_fd: int
    handover: Handover | None
    capture: Capture | None


def _launch(
    spec: Spec,
    kinds: int,
    be_between: Callable[[_Ends], int],
    ready: Callable[[], None],
    output: _Output,
    forked: Callable[[], None] = lambda: None,
) -> int:
    """Fork the process that runs the command, in new namespaces of `kinds`, and relay until that ends."""
    standard_descriptors.open_missing()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored, which is inherited, nobody can be waited for
    receiver, sender = channel.make()
    alive_read, alive_write = os.pipe()
    handover = _make_handover() if spec.process.terminal else None
    capture = (
        _make_capture(output.keep, attached=output.attached) if output.keep and not spec.process.terminal else None
    )

    def between() -> int:
        receiver.close()
        os.close(alive_write)
        if capture:
            capture.close_ours()
        return be_between(_Ends(sender, alive_read, handover, capture))

    front = _Front(receiver, handover, alive_write, ready, capture, output, interactive=spec.process.interactive)
    try:
        try:
            front.monitor = mapped.fork(spec.id_map, kinds, between)
        finally:
            forked()
            sender.close()
            if capture:
                capture.close_theirs()
            os.close(alive_read)
            if handover:
                handover.close_theirs()
        return front.wait()
    finally:
        front.close()


class _Front:
    """The launching process' side of one container. Changed by its own methods only, but for `monitor`."""

    def __init__(
        self,
        receiver: Receiver,
        handover: Handover | None,
        alive_fd: int,
        ready: Callable[[], None],
        capture: Capture | None,
        output: _Output,
        *,
        interactive: bool,
    ) -> None:
        self._receiver: Final = receiver
        self._handover = handover  # where the container's terminal comes from; None once it has come
        self._alive_fd: int | None = alive_fd  # the monitor ends the container when this is closed
        self._ready: Final = ready
        self._capture: Final = capture
        self._output: Final = output
        self._interactive: Final = interactive
        self.monitor: int | None = None  # set by `launch` when there is one; None again once it was waited for
        self._init_fd: int | None = None  # pidfd of init, once there is one
        self._relay: Relay | None = None  # once the container has made its terminal
        self._failure: LaunchError | None = None  # the first one reported
        self._gave_up: int | None = None  # the signal that ended us before there was an init to pass it on to

    def wait(self) -> int:
        """Relay until the monitor has ended."""
        assert self.monitor is not None
        signals = (*_FORWARDED, *_OF_TERMINALS) if self._handover else _FORWARDED
        monitor_fd = os.pidfd_open(self.monitor)
        with _signals_readable(signals) as signals_fd:
            while True:
                relayed = self._relay.wanted() if self._relay else {}
                ready = self._poll(relayed, monitor_fd, signals_fd)
                for fd in ready & relayed.keys():
                    if self._relay:
                        self._relay.handle(fd)
                if signals_fd in ready:
                    self._handle_signals(os.read(signals_fd, 1024))
                if self._handover and self._handover.fileno() in ready:
                    self._begin_relay(self._handover)
                if self._capture:
                    for fd in ready & self._capture.filenos():
                        self._capture.handle(fd)
                while message := self._receiver.receive():
                    self._handle_message(message)
                if monitor_fd in ready:
                    os.close(monitor_fd)
                    return self._outcome()

    def close(self) -> None:
        """Have the container ended if it has not, wait for that, and give the terminal back."""
        self._let_monitor_end()
        if self.monitor is not None:
            os.waitpid(self.monitor, 0)
            self.monitor = None
        if self._relay:
            self._relay.close()
        if self._capture:
            self._capture.drain()
            self._capture.close_ours()
        if self._handover:
            self._handover.close()
        if self._init_fd is not None:
            os.close(self._init_fd)
        self._receiver.close()

    def _poll(self, relayed: dict[int, int], *others: int) -> set[int]:
        poll = select.poll()
        for fd, events in relayed.items():
            poll.register(fd, events)
        captured = self._capture.filenos() if self._capture else ()
        handed = (self._handover.fileno(),) if self._handover else ()
        for fd in (*others, self._receiver.fileno(), *handed, *captured):
            poll.register(fd, select.POLLIN)
        return {fd for fd, _ in poll.poll()}

    def _outcome(self) -> int:
        assert self.monitor is not None
        _, wait_status = os.waitpid(self.monitor, 0)
        self.monitor = None
        if self._gave_up is not None:
            return 128 + self._gave_up
        if self._failure:
            raise self._failure
        if os.WIFSIGNALED(wait_status):
            self._wait_for_init()
            why = f"its monitor was killed by signal {os.WTERMSIG(wait_status)}"
            raise LaunchError("running the container", "", why)
        return exit_status(wait_status)

    def _wait_for_init(self) -> None:
        """Without its monitor the container ends, but nobody has waited for that."""
        if self._init_fd is not None:
            poll = select.poll()
            poll.register(self._init_fd, select.POLLIN)
            poll.poll(_ENDING_S * 1000)

    def _begin_relay(self, handover: Handover) -> None:
        from unionfs.launcher.terminal import Relay

        master = handover.receive()
        handover.close()
        self._handover = None
        if master is not None:
            keep, attached = self._output
            self._relay = Relay(master, interactive=self._interactive, keep=keep, attached=attached)

    def _handle_message(self, message: Message) -> None:
        if message.kind == INIT:
            with contextlib.suppress(ProcessLookupError):
                self._init_fd = os.pidfd_open(int(message.fields[0]))
        elif message.kind == STARTED:
            self._ready()
        elif message.kind == FAILED and not self._failure:
            self._failure = failure_in(message)

    def _handle_signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGTSTP:
                self._stop()
            elif number == signal.SIGWINCH:
                if self._relay:
                    self._relay.resize()
            elif number == signal.SIGCONT:
                if self._relay:
                    self._relay.resume()
            else:
                self._pass_on(number)

    def _pass_on(self, number: int) -> None:
        if self._init_fd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._init_fd, number)
        elif self._gave_up is None:
            self._gave_up = number
            self._let_monitor_end()
        elif self.monitor is not None:
            os.kill(self.monitor, signal.SIGKILL)  # asked twice: the preparation hangs

    def _let_monitor_end(self) -> None:
        if self._alive_fd is not None:
            os.close(self._alive_fd)
            self._alive_fd = None

    def _stop(self) -> None:
        """Stop ourselves as asked; what we hold of the user's terminal is given back meanwhile."""
        if self._relay:
            self._relay.pause()
        os.kill(os.getpid(), signal.SIGSTOP)
        if self._relay:
            self._relay.resume()


@contextlib.contextmanager
def _signals_readable(numbers: tuple[signal.Signals, ...]) -> Iterator[int]:
    """A descriptor from which arriving signals are read, one byte each, instead of having their usual effect.

    One that is ignored stays ignored: whoever started us wants it so (nohup, a shell's background job).
    """
    read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def nothing(number: int, frame: FrameType | None) -> None:
        """The byte written to `write_fd` is the effect."""

    woken = signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    taken = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, nothing) for number in taken}
    try:
        yield read_fd
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(woken)
        os.close(read_fd)
        os.close(write_fd)


def _make_capture(keep: Keep, *, attached: bool) -> Capture:
    from unionfs.launcher.capture import Capture

    return Capture(keep, attached=attached)


def _make_handover() -> Handover:
    from unionfs.launcher.terminal import Handover

    return Handover()
