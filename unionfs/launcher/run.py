"""Run a container and wait for it: the process that the user started, in the host's namespaces.

It forks the monitor, then relays output or a terminal, forwards signals to the container's init, and returns the exit
code. Modules that only some containers need are imported late.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable, Iterable, Set
from typing import TYPE_CHECKING, Final, NamedTuple

from unionfs import standard_descriptors
from unionfs.launcher import channel, userns
from unionfs.launcher import plan as plans
from unionfs.launcher.channel import FAILED, INIT, STARTED, Message, Receiver, Sender, failure_in
from unionfs.launcher.errors import LaunchError
from unionfs.launcher.init import exit_status
from unionfs.launcher.monitor import Hooks, Monitor
from unionfs.launcher.signal_pipe import NOT_FORWARDED, signals_readable
from unionfs.launcher.spec import Spec

if TYPE_CHECKING:
    from unionfs.launcher.capture import Capture, OutputSink
    from unionfs.launcher.namespace_socket import Namespaces
    from unionfs.launcher.terminal import ConsoleSocket, Relay

_ENDING_S: Final = 10  # time limit for killed processes to end; a process that needs longer is stuck in the kernel
_JOB_SIGNALS: Final = {signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGCONT}
_TERMINAL_SIGNALS: Final = {signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT}


def launch(
    spec: Spec,
    hooks: Hooks,
    ready: Callable[[], None] = lambda: None,
    sink: OutputSink | None = None,
    *,
    attached: bool = True,
    forked: Callable[[], None] = lambda: None,
) -> int:
    """Run the container until its command ends. Return its exit code, or 128 plus the signal that killed it.

    `forked` is called when the process that calls `hooks` was forked, or could not be; `ready` when the command has
    been executed. `sink` gets all its output, which unless `attached` is not written to our standard output and error.
    When this returns or raises, all processes of the container have ended.
    Raises: LaunchError when the command could not be executed, or the container had to be killed.
    """

    def run_monitor(ends: _Ends) -> int:
        return Monitor(spec, hooks, ends.sender, ends.alive_fd, ends.console, ends.capture).run()

    kinds = plans.flags(plans.make(spec).outer)
    try:
        return _launch(spec, kinds, run_monitor, ready, _Output(sink, attached), forked)
    except OSError as error:
        raise LaunchError.of("running the container", error) from error


def join(spec: Spec, namespaces: Namespaces, ready: Callable[[], None] = lambda: None, *, attached: bool = True) -> int:
    """Run one more command in a running container. Return its exit code as `launch` does. Closes `namespaces`.

    Unless `attached`, its output is discarded, and it goes on when this process is killed.
    Raises: LaunchError when the command could not be executed.
    """
    from unionfs.launcher.exec_process import ExecProcess

    def run_exec_process(ends: _Ends) -> int:
        return ExecProcess(spec, namespaces, ends.sender, ends.console, ends.capture, not attached).run()

    try:
        return _launch(
            spec._replace(id_map=None), 0, run_exec_process, ready, _Output(None, attached), namespaces.close
        )
    except OSError as error:
        raise LaunchError.of("running in the container", error) from error


class _Output(NamedTuple):
    """How the command's output is handled, as in `launch`."""

    sink: OutputSink | None
    attached: bool


class _Ends(NamedTuple):
    """The pipe and socket ends of the child: the monitor or the exec process."""

    sender: Sender
    alive_fd: int
    console: ConsoleSocket | None
    capture: Capture | None


def _launch(
    spec: Spec,
    kinds: int,
    run_child: Callable[[_Ends], int],
    ready: Callable[[], None],
    output: _Output,
    forked: Callable[[], None] = lambda: None,
) -> int:
    """Fork the process that runs the command, in new namespaces of `kinds` (CLONE_NEW*), and relay until it ends."""
    standard_descriptors.open_missing()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # an ignored SIGCHLD is inherited, and makes waitpid(2) fail
    receiver, sender = channel.make()
    alive_read, alive_write = os.pipe()
    console = _make_console() if spec.process.terminal else None
    captured = not spec.process.terminal and (output.sink is not None or (output.attached and _is_non_blocking()))
    capture = _make_capture(output.sink, attached=output.attached) if captured else None

    def run_forked() -> int:
        receiver.close()
        os.close(alive_write)
        if capture:
            capture.close_read_ends()
        return run_child(_Ends(sender, alive_read, console, capture))

    session = _Session(receiver, console, alive_write, ready, capture, output, interactive=spec.process.interactive)
    # The command may run before `wait` handles signals: until then they stay pending.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - NOT_FORWARDED)
    try:
        try:
            session.monitor = userns.fork(spec.id_map, kinds, run_forked)
        finally:
            forked()
            sender.close()
            if capture:
                capture.close_write_ends()
            os.close(alive_read)
            if console:
                console.close_child_end()
        return session.wait(mask)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        session.close()


class _Session:
    """Relays for one container in the launching process. Only `monitor` is changed from outside."""

    def __init__(
        self,
        receiver: Receiver,
        console: ConsoleSocket | None,
        alive_fd: int,
        ready: Callable[[], None],
        capture: Capture | None,
        output: _Output,
        *,
        interactive: bool,
    ) -> None:
        self._receiver: Final = receiver
        self._console = console  # receives the container's terminal; None once it was received
        self._alive_fd: int | None = alive_fd  # the monitor ends the container when this is closed
        self._ready: Final = ready
        self._capture: Final = capture
        self._output: Final = output
        self._interactive: Final = interactive
        self.monitor: int | None = None  # its pid; set by `_launch`; None again once it was waited for
        self._init_fd: int | None = None  # pidfd of init; None until the monitor has reported it
        self._job_signals: set[signal.Signals] = set()  # those that concern this process; set once, by wait
        self._relay: Relay | None = None  # None until the container has sent its terminal
        self._failure: LaunchError | None = None  # the first one reported
        self._senders_gone = False  # all of the channel's other ends are closed, which poll(2) would report for ever
        self._fatal_signal: int | None = None  # a signal that arrived before there was an init to forward it to

    def wait(self, mask: Iterable[int]) -> int:
        """Relay until the monitor has ended. `mask`: the signals to block from now on."""
        assert self.monitor is not None
        signals = signal.valid_signals() - NOT_FORWARDED
        if self._console:  # with a terminal, stopping and continuing concerns this process
            signals = signals - _JOB_SIGNALS | _TERMINAL_SIGNALS
            self._job_signals = _TERMINAL_SIGNALS
        monitor_fd = os.pidfd_open(self.monitor)
        with signals_readable(signals) as signals_fd:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            while True:
                relayed = self._relay.wanted() if self._relay else {}
                captured = self._capture.wanted() if self._capture else {}
                ready = self._poll({**relayed, **captured}, monitor_fd, signals_fd)
                for fd in ready & relayed.keys():
                    if self._relay:
                        self._relay.handle(fd)
                if signals_fd in ready:
                    numbers = os.read(signals_fd, 1024)
                    self._handle_messages()  # a signal for a running command must not be treated as an early one
                    self._handle_signals(numbers)
                if self._console and self._console.fileno() in ready:
                    self._begin_relay(self._console)
                if self._capture:
                    for fd in ready & captured.keys():
                        self._capture.handle(fd)
                self._handle_messages()
                if monitor_fd in ready:
                    os.close(monitor_fd)
                    return self._outcome()

    def close(self) -> None:
        """End the container if it still runs, wait for the monitor, and restore the terminal."""
        self._end_container()
        if self.monitor is not None:
            os.waitpid(self.monitor, 0)
            self.monitor = None
        if self._relay:
            self._relay.close()
        if self._capture:
            self._capture.drain()
            self._capture.close_read_ends()
        if self._console:
            self._console.close()
        if self._init_fd is not None:
            os.close(self._init_fd)
        self._receiver.close()

    def _poll(self, wanted: dict[int, int], *others: int) -> Set[int]:
        poll = select.poll()
        for fd, events in wanted.items():
            poll.register(fd, events)
        handed = (self._console.fileno(),) if self._console else ()
        channel = () if self._senders_gone else (self._receiver.fileno(),)
        for fd in (*others, *channel, *handed):
            poll.register(fd, select.POLLIN)
        ready = dict(poll.poll())
        self._senders_gone |= any(ready.get(fd) == select.POLLHUP for fd in channel)
        return ready.keys()

    def _outcome(self) -> int:
        assert self.monitor is not None
        _, wait_status = os.waitpid(self.monitor, 0)
        self.monitor = None
        if self._fatal_signal is not None:
            return 128 + self._fatal_signal
        if self._failure:
            raise self._failure
        if os.WIFSIGNALED(wait_status):
            self._wait_for_init()
            why = f"its monitor was killed by signal {os.WTERMSIG(wait_status)}"
            raise LaunchError("running the container", "", why)
        return exit_status(wait_status)

    def _wait_for_init(self) -> None:
        """Wait until the kernel has ended init, after the monitor was killed and could not wait for it."""
        if self._init_fd is not None:
            poll = select.poll()
            poll.register(self._init_fd, select.POLLIN)
            poll.poll(_ENDING_S * 1000)

    def _begin_relay(self, console: ConsoleSocket) -> None:
        from unionfs.launcher.terminal import Relay

        master = console.receive()
        console.close()
        self._console = None
        if master is not None:
            sink, attached = self._output
            self._relay = Relay(master, interactive=self._interactive, sink=sink, attached=attached)

    def _handle_messages(self) -> None:
        while message := self._receiver.receive():
            self._handle_message(message)

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
            if number not in self._job_signals:
                self._forward_signal(number)
            elif number == signal.SIGTSTP:
                self._stop()
            elif self._relay and number == signal.SIGWINCH:
                self._relay.resize()
            elif self._relay:
                self._relay.resume()

    def _forward_signal(self, number: int) -> None:
        if self._init_fd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._init_fd, number)
            if number == signal.SIGTSTP and os.isatty(0):
                self._stop()  # Ctrl-Z: the shell waits for us, not for the command
        elif number in _JOB_SIGNALS:
            pass  # there is no command yet that could stop
        elif self._fatal_signal is None:
            self._fatal_signal = number
            self._end_container()
        elif self.monitor is not None:
            os.kill(self.monitor, signal.SIGKILL)  # a second signal: the preparation hangs

    def _end_container(self) -> None:
        if self._alive_fd is not None:
            os.close(self._alive_fd)
            self._alive_fd = None

    def _stop(self) -> None:
        """Stop this process (SIGTSTP), with the user's terminal restored while it is stopped."""
        if self._relay:
            self._relay.pause()
        os.kill(os.getpid(), signal.SIGSTOP)
        if self._relay:
            self._relay.resume()


def _is_non_blocking() -> bool:
    """Return whether our standard output or error is non-blocking: commands expect blocking ones, and get pipes."""
    return not (os.get_blocking(1) and os.get_blocking(2))


def _make_capture(sink: OutputSink | None, *, attached: bool) -> Capture:
    from unionfs.launcher.capture import Capture

    return Capture(sink, attached=attached)


def _make_console() -> ConsoleSocket:
    from unionfs.launcher.terminal import ConsoleSocket

    return ConsoleSocket()
