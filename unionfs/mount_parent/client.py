"""Ask the parent for a mount, or for a container. Imports only modules that are part of the interpreter: every mount
imports this one.

The exchange: both ends check each other (identity); the parent says that it accepts; the client, or a process that it
has forked, sends one request, with descriptors; the forked process answers when the mount can be used or has failed.
Until the request is sent nothing is done, and an ordinary mount can be made instead. For a container it answers twice:
when it has begun, and when the container has ended.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` imports twice as much as all of this
import _socket
import marshal
import os
import sys

from unionfs.mount_parent import identity, messages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

LINGER = "UNIONFS_LINGER"
LINGER_S = 60.0

NAMESPACES = ("user", "cgroup", "mnt")
"""Namespaces that a caller may have entered after it was accepted, in the order in which the forked process enters
them. All others are the parent's."""

COMMAND = "command"  # the request is a command line of `unionfs`
OPTIONS = "options"  # the request is a pickled DaemonOptions
RUN = "run"  # the request is a command line of `unionfs run`, with the numbers of ignored and of blocked signals

ACCEPTED = b"+"
REFUSED = b"-"  # followed by the reason
RETIRED = b"!"  # refused likewise; the parent has closed its socket, so another parent may be started

EXIT = "exit"  # reply: the command line was run; its exit code
BEGUN = "begun"  # reply to RUN: the command line runs; with a pidfd of its process. EXIT follows
READY = "ready"
"""Reply: mounted; the daemon's pid, a warning or ""; with a pidfd of it, and a pipe at its end when the mount ends."""
FAILED = "failed"  # reply: not mounted; message, hint, errno
UNABLE = "unable"  # reply: nothing was done; why

ENDED = "the daemon ended before it was ready"
ENDED_HINT = "run it with --foreground --debug to see why"

_PATIENCE_S = 2.0
"""Time limit for the answer of a parent, which takes less than a millisecond unless the parent is stopped."""


class NoParentError(Exception):
    """No parent can make the mount; nothing was done. `str()` is the reason; `is_absent`: a parent may be started."""

    def __init__(self, why: str, *, is_absent: bool = False) -> None:
        super().__init__(why)
        self.is_absent = is_absent


class ParentEndedError(Exception):
    """The forked process has ended before it answered."""


refusal: NoParentError | None = None
"""Why this process makes an ordinary mount; set after it has asked the parent."""

may_leave_parent = True
"""Whether this process may start a parent. Not if a parent has forked it, since the files of its modules may have
changed."""


def linger_s() -> float:
    """How long a parent without mounts stays, in seconds; 0: parents are neither started nor asked. Raises:
    ValueError."""
    seconds = float(os.environ.get(LINGER) or LINGER_S)
    if not 0 <= seconds < float("inf"):
        raise ValueError(seconds)
    return seconds


class Reply:
    """The answer of a forked process."""

    def __init__(self, fields: list[str], descriptors: list[int]) -> None:
        self.fields = fields  # immutable
        self.descriptors = descriptors  # immutable; the caller must close it


class Parent:
    """A connection of this process to a parent with the same properties (identity).

    A process that this one forks may send the request, also from other namespaces that this one's user may enter: the
    parent checks this process, which must live until then, and the process that the parent forks enters the namespaces.
    The forked process waits some seconds for the request. Programs with fewer rights than this process must not get the
    connection.
    """

    def __init__(self, end: _socket.socket, pid: int) -> None:
        self._end = end  # immutable
        self._pid = pid  # immutable

    def close(self) -> None:
        """Close the connection."""
        self._end.close()

    def ask(
        self,
        kind: str,
        subject: Callable[[], object],
        descriptors: Sequence[int] = (),
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Reply:
        """Wait until the parent has accepted, and send it the request that `subject` returns. Called once.

        `descriptors` are sent along. `meanwhile` is called before the answer is awaited. Raises: NoParentError,
        ParentEndedError.
        """
        try:
            return self.begin(kind, subject, descriptors, meanwhile)
        finally:
            self._end.close()

    def begin(
        self,
        kind: str,
        subject: Callable[[], object],
        descriptors: Sequence[int] = (),
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Reply:
        """The same; the connection stays open for `receive`."""
        self._wait_until_accepted()
        request: Any = (identity.code(), kind, subject(), [*os.environb.items()])
        _send(self._end, marshal.dumps(request), descriptors)
        meanwhile()
        reply = self.receive()
        if reply.fields[0] == UNABLE:
            raise NoParentError(f"parent {self._pid}: {reply.fields[1]}")
        return reply

    def receive(self) -> Reply:
        """Wait for an answer of the forked process. Raises: ParentEndedError."""
        try:
            reply, received = messages.receive(self._end)
        except (OSError, EOFError):
            raise ParentEndedError from None
        return Reply(os.fsdecode(reply).split("\0"), received)

    def _wait_until_accepted(self) -> None:
        """Raises: NoParentError."""
        try:
            answer = self._end.recv(4096)
        except OSError as error:
            raise NoParentError(f"parent {self._pid} does not answer: {error.strerror or error}") from None
        if answer[:1] != ACCEPTED:
            why = os.fsdecode(answer[1:]) or "it has ended"
            raise NoParentError(f"parent {self._pid}: {why}", is_absent=answer[:1] in (b"", RETIRED))


def connect() -> Parent:
    """Connect to the parent, and check that it is like this process. Raises: NoParentError."""
    try:
        if linger_s() == 0:
            raise NoParentError(f"{LINGER} is 0")
    except ValueError:
        raise NoParentError(f"{LINGER} is not a number of seconds") from None
    try:
        own = identity.facts()
    except OSError as error:
        raise NoParentError(f"/proc cannot be read: {error.strerror}") from None
    if confined := identity.confinement(own):
        raise NoParentError(confined)
    try:
        end = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    except OSError as error:
        raise NoParentError(f"cannot make a socket: {error.strerror}") from None
    try:
        end.settimeout(_PATIENCE_S)
        end.connect(identity.address(own))
        return Parent(end, identity.check_peer(end, own))
    except ConnectionRefusedError:
        end.close()
        raise NoParentError("there was no parent", is_absent=True) from None
    except OSError as error:
        end.close()
        raise NoParentError(f"the parent cannot be reached: {error.strerror or error}") from None
    except identity.DifferentError as different:
        end.close()
        raise NoParentError(str(different)) from None


def _send(end: _socket.socket, request: bytes, descriptors: Sequence[int]) -> None:
    """Send the request, with descriptors of our namespaces, root directory and working directory.

    Raises: NoParentError.
    """
    mine: list[int] = []
    try:
        mine.extend(os.open(f"/proc/self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in NAMESPACES)
        mine.append(os.open("/", os.O_PATH | os.O_CLOEXEC))
        mine.append(os.open(".", os.O_PATH | os.O_CLOEXEC))
        end.settimeout(None)
        messages.send(end, request, (*mine, *descriptors))
    except OSError as error:
        raise NoParentError(f"the parent cannot be asked: {error.strerror}", is_absent=True) from None
    finally:
        for fd in mine:
            os.close(fd)


def mount(argv: list[str]) -> int | None:
    """Run `argv`, a command line of `unionfs` that mounts, in a process of the parent. Returns the exit code; None:
    this process must run it, for the reason in `refusal`."""
    global refusal  # noqa: PLW0603 - one process runs one command line
    try:
        reply = connect().ask(COMMAND, lambda: [os.fsencode(word) for word in argv], (0, 1, 2))
        return int(reply.fields[1])
    except NoParentError as why:
        refusal = why
        return None
    except ParentEndedError:
        sys.stderr.write(f"unionfs: {ENDED}\n  {ENDED_HINT}\n")
        return 1


_NOT_FORWARDED = frozenset(
    (
        *(_signal.SIGKILL, _signal.SIGSTOP),  # cannot be caught
        *(_signal.SIGCHLD, _signal.SIGPIPE, _signal.SIGURG, _signal.SIGWINCH),  # they concern this process
        *(_signal.SIGSEGV, _signal.SIGBUS, _signal.SIGFPE, _signal.SIGILL),  # faults of this process
    )
)
"""As launcher.signal_pipe.NOT_FORWARDED, which is not imported here. launcher.run gets all others, and forwards them
to the container."""
IGNORED_BY_PYTHON = frozenset((_signal.SIGPIPE, _signal.SIGXFSZ))
"""Signals that Python ignores at its start, whatever the caller does."""
_OWN_FAILURE = 125
_FEW_DESCRIPTORS = 64
"""With fewer descriptors, a process that the parent has forked, which has one more, could lack one when the container
is removed."""


def run(argv: list[str]) -> int | None:
    """Run `argv`, a command line of `unionfs run` without a terminal, in a process of the parent, which is killed if
    this one ends. Returns the exit code; None: this process must run it, for the reason in `refusal`."""
    global refusal  # noqa: PLW0603 - one process runs one command line
    signals = _Signals()
    try:
        if os.sysconf("SC_OPEN_MAX") < _FEW_DESCRIPTORS:
            raise NoParentError("it may open few files")
        parent = connect()
        signals.catch()
        reply = parent.begin(RUN, lambda: [[os.fsencode(word) for word in argv], *signals.inherited], (0, 1, 2))
        signals.forward_to(reply.descriptors[0])
        return int(parent.receive().fields[1])
    except NoParentError as why:
        signals.give_back()
        refusal = why
        return None
    except ParentEndedError:
        sys.stderr.write("unionfs: running the container failed: the process that ran it was killed\n")
        return _OWN_FAILURE


class _Signals:
    """Signals of this process that are forwarded to another one."""

    def __init__(self) -> None:
        valid = _signal.valid_signals()
        self.inherited = (  # immutable
            [number for number in valid - IGNORED_BY_PYTHON if _signal.getsignal(number) == _signal.SIG_IGN],
            [int(number) for number in _signal.pthread_sigmask(_signal.SIG_BLOCK, [])],
        )
        handlers = {number: _signal.getsignal(number) for number in valid - _NOT_FORWARDED - {*self.inherited[0]}}
        # immutable. None: a handler that is no function of Python's and cannot be set again, such as faulthandler's
        self._before = {number: handler for number, handler in handlers.items() if handler is not None}
        self._pending: list[int] = []  # signals that came before `forward_to`
        self._pidfd: int | None = None  # set once, by `forward_to`

    def catch(self) -> None:
        """Begin to handle all signals that are not ignored."""
        for number in self._before:
            _signal.signal(number, self._handle)

    def give_back(self) -> None:
        """Restore the former handlers, and handle the signals that have come."""
        for number, handler in self._before.items():
            _signal.signal(number, handler)
        for number in self._pending:
            os.kill(os.getpid(), number)

    def forward_to(self, pidfd: int) -> None:
        """Forward all further signals, and those that have come."""
        self._pidfd = pidfd
        pending, self._pending = self._pending, []
        for number in pending:
            self._handle(number, None)

    def _handle(self, number: int, _frame: object) -> None:
        if self._pidfd is None:
            self._pending.append(number)
            return
        try:
            _signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return
        if number == _signal.SIGTSTP and os.isatty(0):
            os.kill(os.getpid(), _signal.SIGSTOP)  # Ctrl-Z: the shell waits for this process
