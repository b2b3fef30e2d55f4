"""One turn of the loop: requests from the device to the dispatcher and answers back, until none is left.

A plain function, so that it can be compiled and no task switch stands between two requests. Somebody who waits for an
answer is likely to ask again at once, so a turn looks out for that without sleeping (`BusyPoll`), then lingers for a
moment before it gives the thread back, which costs several times what a request costs.
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
"""Nothing is there: sleep until the device is readable."""
BUSY: Final = 1
"""There may be more, but others want the thread, too."""
SLOW: Final = 2
"""`Dispatcher.slow` has something to begin; there may be more."""

TURN_S: Final = 0.005
"""The longest that a turn should keep the thread: what a task beside the loop may have to wait."""

LINGER_MS: Final = 1
"""How long a turn waits for one more request: poll(2)'s shortest, longer than a busy program needs to ask again."""


def serve(
    device: Device,
    busy_poll: BusyPoll,
    dispatcher: Dispatcher,
    *,
    until: float,
    lingers: bool,
    has_served: bool,
) -> int:
    """Serve what is there, at most until `until` (monotonic), and say why it ends: IDLE, BUSY or SLOW.

    `lingers`: wait a moment for the next request, if there was one before; `has_served`: there was, in this turn.
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
            if not length and lingers and not device.wait(LINGER_MS):
                return IDLE
        if not length:
            length = device.receive()
        if not length:
            return IDLE
        reply = dispatcher.handle_and_log(request, length) if debug else dispatcher.handle(request, length)
        if reply is not None:
            answer(device, reply)
        has_served = True
        if slow:
            return SLOW
    return BUSY


def answer(device: Device, reply: bytes | memoryview) -> None:
    """Send a reply. One that the kernel finds malformed becomes EIO, else its caller would wait for ever.

    Raises: Gone.
    """
    if device.send(reply):
        return
    _length, code, unique = abi.OUT_HEADER.unpack_from(reply)
    log.error("the kernel refused an answer of %d bytes (errno %d)", len(reply), -code)
    if unique:
        device.send(encode.error(unique, errno.EIO))
