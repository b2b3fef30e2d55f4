"""Send and receive messages on a stream socket: a length, the bytes, and descriptors with the first byte."""

from __future__ import annotations

import _socket
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_LENGTH_BYTES = 8
_FD_BYTES = 4  # sizeof(int)
_FDS_MAX = 16
_PIECE = 65536


def send(end: _socket.socket, message: bytes, descriptors: Sequence[int] = ()) -> None:
    """Send one message. Raises: OSError, also in a process that SIGPIPE would kill: BrokenPipeError."""
    data = len(message).to_bytes(_LENGTH_BYTES, sys.byteorder) + message
    fds = b"".join(fd.to_bytes(_FD_BYTES, sys.byteorder) for fd in descriptors)
    ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fds)] if fds else []
    rest = data[end.sendmsg([data], ancillary, _socket.MSG_NOSIGNAL) :]
    if rest:  # sending 0 bytes fails after the receiver has received all and closed
        end.sendall(rest, _socket.MSG_NOSIGNAL)


def receive(end: _socket.socket) -> tuple[bytes, list[int]]:
    """Receive one message and its descriptors, which are closed by execve(2). Raises: OSError, EOFError."""
    data, ancillary, _, _ = end.recvmsg(_PIECE, _socket.CMSG_SPACE(_FDS_MAX * _FD_BYTES), _socket.MSG_CMSG_CLOEXEC)
    fds = [
        int.from_bytes(sent[at : at + _FD_BYTES], sys.byteorder)
        for _, kind, sent in ancillary
        if kind == _socket.SCM_RIGHTS
        for at in range(0, len(sent) - _FD_BYTES + 1, _FD_BYTES)
    ]
    pieces, missing = [data], _LENGTH_BYTES - len(data)
    while missing > 0:
        pieces.append(_some(end, missing))
        missing -= len(pieces[-1])
    data = b"".join(pieces)
    pieces = [data[_LENGTH_BYTES:]]
    missing = int.from_bytes(data[:_LENGTH_BYTES], sys.byteorder) - len(pieces[0])
    while missing > 0:
        pieces.append(_some(end, min(missing, _PIECE)))
        missing -= len(pieces[-1])
    return b"".join(pieces), fds


def _some(end: _socket.socket, most: int) -> bytes:
    piece = end.recv(most)
    if not piece:
        raise EOFError
    return piece
