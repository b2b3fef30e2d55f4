"""One turn of the loop: requests from the device to the dispatcher and answers back, until none is left.

A plain function, so that it can be compiled and no task switch stands between two requests. A program that got its
answer often asks again at once: so a turn looks for the next request without sleeping (`fuse.kernel.busy_poll`), then
sleeps in poll(2) for a millisecond at most, before it returns to the loop, which costs as much as several requests.
"""

from __future__ import annotations

import errno
import logging
from time import monotonic
from typing import Final

from unionfs.fuse.kernel import abi, encode
from unionfs.fuse.kernel.busy_poll import BusyPoll
from unionfs.fuse.kernel.device import Device
from unionfs.fuse.kernel.dispatch import Dispatcher

log = logging.getLogger(__name__)

IDLE: Final = 0
"""No request is there: the caller sleeps until the device is readable."""
BUSY: Final = 1
"""There may be more requests, but the time of the turn is over."""
SLOW: Final = 2
"""`Dispatcher.slow` holds work that the caller must begin; there may be more requests."""

TURN_S: Final = 0.005
"""How long a turn may keep the thread, in seconds: what other tasks of the loop may have to wait."""

_FULL: Final = (-errno.ENOSPC, -errno.EDQUOT)
_REQUESTS_BETWEEN: Final = 64
"""How many requests may come before a refusal for want of space is sent."""
_ERROR_SIZE: Final = abi.OUT_HEADER.size

WAIT_MS: Final = 1
"""How long a turn waits in poll(2) for one more request: its shortest wait, longer than a busy program needs."""


def serve(
    device: Device,
    busy_poll: BusyPoll,
    dispatcher: Dispatcher,
    *,
    until: float,
    may_wait: bool,
    has_served: bool,
) -> int:
    """Serve requests until none is left or `until` (monotonic seconds) is over. Returns why it ends: IDLE, BUSY, SLOW.

    `has_served`: a request was served in this turn already. `may_wait`: wait `WAIT_MS` for the request after it.
    Raises: Gone.
    """
    request, slow, session = device.request, dispatcher.slow, dispatcher.session
    debug = session.options.debug
    while not session.over:
        length = 0
        if has_served:
            if monotonic() > until:
                return BUSY
            length = busy_poll.look(device)
            if not length and may_wait and not device.wait(WAIT_MS):
                return IDLE
        if not length:
            length = device.receive()
        if not length:
            return IDLE
        reply = dispatcher.handle_and_log(request, length) if debug else dispatcher.handle(request, length)
        if reply is not None:
            if len(reply) == _ERROR_SIZE and abi.OUT_HEADER.unpack_from(reply)[1] in _FULL:
                reply = _serve_after_forgets(device, dispatcher, bytes(request[:length]), reply)
            if reply is not None:
                answer(device, reply)
        has_served = True
        if slow:
            return SLOW
    return BUSY


def _serve_after_forgets(
    device: Device, dispatcher: Dispatcher, full: bytes, refusal: bytes | memoryview
) -> bytes | memoryview | None:
    """Serve a request that found the disk full once more, if a FORGET is read before its refusal is sent.

    The kernel hands out requests before FORGETs. A program that removes a file to make room and writes at once would be
    told that there is none, since a removed file keeps its space until its FORGET.
    """
    has_forgotten = False
    for _ in range(_REQUESTS_BETWEEN):
        length = device.receive() if not dispatcher.session.over else 0
        if not length:
            break
        has_forgotten = has_forgotten or dispatcher.is_forget(device.request)
        reply = dispatcher.handle(device.request, length)
        if reply is not None:
            answer(device, reply)
    return dispatcher.serve_again(full) if has_forgotten else refusal


def answer(device: Device, reply: bytes | memoryview) -> None:
    """Send a reply. If the kernel refuses it as malformed, send EIO instead: the program would wait for ever.

    Raises: Gone.
    """
    if device.send(reply):
        return
    _length, code, unique = abi.OUT_HEADER.unpack_from(reply)
    log.error("the kernel refused an answer of %d bytes (errno %d)", len(reply), -code)
    if unique:
        device.send(encode.error(unique, errno.EIO))
