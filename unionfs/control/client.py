"""Send requests to the daemon of a mounted union, through its control socket (control.server).

Accepts answers of root, its own user and the user who mounted the union only: any process may listen under the socket's
name.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from unionfs.control import listening
from unionfs.fuse.view_name import is_view
from unionfs.syscalls import mountinfo, peers
from unionfs.syscalls.mountinfo import Mount

_CONNECT_TIMEOUT_S: Final = 10.0
"""Seconds to wait until a daemon listens under a connection's name."""

_STRANGER_S: Final = 1.0
"""Seconds to wait while another user's process listens there: the daemon of a mount that has ended may."""


_AGAIN_S: Final = 0.02


class NoAnswerError(Exception):
    """The daemon could not be asked, or refused to answer. `str()` says why."""


def ask(
    connection: int,
    question: str,
    owner: int | None = None,
    details: dict[str, Any] | None = None,
    fds: Sequence[int] = (),
) -> Iterator[dict[str, Any]]:
    """Send `question`, with `details` and descriptors, to the daemon of a FUSE connection, which `owner` mounted, and
    yield its answers line by line.

    Raises: NoAnswerError.
    """
    with (
        conversation(connection, question, owner, details, fds) as daemon,
        daemon.makefile("rb") as lines,
        suppress(ConnectionResetError),
    ):
        for line in lines:
            yield parsed(line)


@contextmanager
def conversation(
    connection: int,
    question: str,
    owner: int | None = None,
    details: dict[str, Any] | None = None,
    fds: Sequence[int] = (),
) -> Iterator[socket.socket]:
    """Send a question as `ask` does; the connection, on which the answers come as lines for `parsed`, the first of them
    now.

    If the process that listened has ended before it read the question, the question is sent again: another daemon of
    the mount, or the daemon of a new mount that has the number of an old one, then listens. Raises: NoAnswerError.
    """
    began = time.monotonic()
    while True:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as daemon:
            _connect(daemon, connection)
            peer = peers.peer_of(daemon)
            if not peers.is_trusted(peer.uid, owner):
                if time.monotonic() < began + _STRANGER_S:
                    time.sleep(_AGAIN_S)
                    continue
                why = f"process {peer.pid} of user {peer.uid}, who did not mount it, uses its socket's name"
                raise NoAnswerError(why)
            with suppress(OSError):  # an ending daemon may not read; its earlier answer can still be read
                line = json.dumps({"ask": question, **(details or {})}).encode() + b"\n"
                sent = socket.send_fds(daemon, [line], list(fds), socket.MSG_NOSIGNAL) if fds else 0
                daemon.sendall(line[sent:], socket.MSG_NOSIGNAL)
            try:
                daemon.recv(1, socket.MSG_PEEK)
            except ConnectionResetError:  # unix(7): it has closed the connection with data that it had not received
                if time.monotonic() < began + _CONNECT_TIMEOUT_S:
                    continue
            yield daemon
            return


def add_mounts(stats: dict[str, Any], there: Mount) -> None:
    """Add facts of the mount table to the answer to `stats` of the daemon that serves the mount `there`: `is_view`, and
    how many views are mounted in this mount namespace."""
    stats["is_view"] = is_view(there)
    stats["views"]["mounted"] = sum(each.minor == there.minor and is_view(each) for each in mountinfo.mounts())


def parsed(line: bytes) -> dict[str, Any]:
    """One line of an answer. Raises: NoAnswerError, also if the daemon refuses to answer."""
    try:
        answer = json.loads(line)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise NoAnswerError("its daemon's answer is no JSON object")
    if "error" in answer:
        raise NoAnswerError(str(answer["error"]))
    return answer


def _connect(daemon: socket.socket, connection: int) -> None:
    """Connect to the daemon, with retries for _CONNECT_TIMEOUT_S: an ending daemon may still have its name. In another
    network namespace no retry succeeds. Raises: NoAnswerError."""
    deadline = time.monotonic() + _CONNECT_TIMEOUT_S
    while True:
        try:
            daemon.connect(listening.address(connection))
            return
        except OSError as exc:
            if time.monotonic() > deadline:
                raise NoAnswerError(f"its daemon does not answer: {exc.strerror}") from None
            time.sleep(_AGAIN_S)
