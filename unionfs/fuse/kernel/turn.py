"""One turn of the loop: pass requests from the device to the dispatcher and send answers, until there is other work.

A plain function, so that it can be compiled: a program that got its answer often asks again at once.
"""

from __future__ import annotations

import errno
import logging
from time import monotonic
from typing import Final

from unionfs.fuse.kernel import abi, encode
from unionfs.fuse.kernel.busy_poll import BusyPoll
from unionfs.fuse.kernel.decode import BODY
from unionfs.fuse.kernel.device import Device
from unionfs.fuse.kernel.dispatch import Dispatcher

log = logging.getLogger(__name__)

_clock: Final = monotonic
_FULL: Final = (-errno.ENOSPC, -errno.EDQUOT)
_REQUESTS_BETWEEN: Final = 64
"""How many requests are read before a refusal for lack of space is sent."""
_ERROR_SIZE: Final = abi.OUT_HEADER.size
_SETATTR_SIZE: Final = BODY + abi.SETATTR_IN.size


def serve(device: Device, busy_poll: BusyPoll, dispatcher: Dispatcher, *, until: float, sleeps: bool) -> None:
    """Serve requests until `until` (monotonic seconds) is over, or `Dispatcher.slow` holds work that the caller must
    begin, or another descriptor of the device is readable, or the mount has ended.

    `sleeps`: sleep while there is no request; else return. Raises: Gone, and what a signal handler raises in a sleep.
    """
    request, slow, session = device.request, dispatcher.slow, dispatcher.session
    is_logged = session.options.debug
    observes = is_logged or len(session.observers) > 0  # they are changed between two turns
    while not session.over:
        length = busy_poll.wait(device) if sleeps else device.receive()
        if not length:
            return
        if observes:
            reply, now = _observed(dispatcher, request, length, is_logged=is_logged)
        else:
            reply, now = dispatcher.handle(request, length), 0.0
        if reply is not None:
            if len(reply) == _ERROR_SIZE and abi.OUT_HEADER.unpack_from(reply)[1] in _FULL:
                reply = _serve_after_forgets(device, dispatcher, bytes(request[:length]), reply)
            if reply is not None:
                answer(device, reply)
        if slow or (now or _clock()) > until:
            return


def _observed(
    dispatcher: Dispatcher, request: memoryview, length: int, *, is_logged: bool
) -> tuple[bytes | memoryview | None, float]:
    """Serve a request, and let the log and the observers record it. Returns its reply, and when it was there."""
    observers = dispatcher.session.observers
    if length >= _SETATTR_SIZE:  # it is for a SETATTR only
        try:
            for observer in observers:
                observer.is_to_be_served(request, length)
        except Exception as bug:  # noqa: BLE001  it must not end the daemon
            _stop_observing(dispatcher, bug)
            observers = ()
    began = _clock()
    reply = dispatcher.handle_and_log(request, length) if is_logged else dispatcher.handle(request, length)
    now = _clock()
    try:
        for observer in observers:
            observer.served(dispatcher, request, length, reply, began, now)
    except Exception as bug:  # noqa: BLE001  it must not end the daemon
        _stop_observing(dispatcher, bug)
    return reply, now


def _stop_observing(dispatcher: Dispatcher, bug: Exception) -> None:
    log.error("recording of requests failed and has ended", exc_info=bug)
    for observer in dispatcher.session.observers:
        observer.end()


def _serve_after_forgets(
    device: Device, dispatcher: Dispatcher, full: bytes, refusal: bytes | memoryview
) -> bytes | memoryview | None:
    """Serve a request that found the disk full once more, if a FORGET is read before its refusal is sent.

    The kernel hands out requests before FORGETs. A program that removes a file to make room and writes at once would
    get ENOSPC, since a removed file keeps its space until its FORGET.
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
