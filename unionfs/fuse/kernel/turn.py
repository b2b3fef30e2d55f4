"""One turn of the loop: requests from the device to the dispatcher and answers back, until none is left.

A plain function, so that it can be compiled and no task switch stands between two requests. Somebody who waits for an
answer is likely to ask again at once, so a turn looks out for that without sleeping (`Lookout`), then lingers for a
moment before it gives the thread back, which costs several times what a request costs.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Final

from unionfs.fuse.kernel.device import Device
from unionfs.fuse.kernel.dispatch import Dispatcher
from unionfs.fuse.kernel.handlers import Reply

IDLE: Final = 0
"""Nothing is there: sleep until the device is readable."""
BUSY: Final = 1
"""There may be more, but others want the thread, too."""
SLOW: Final = 2
"""`Dispatcher.slow` has something to begin; there may be more."""

LINGER_MS: Final = 1
"""How long a turn waits for one more request: poll(2)'s shortest, longer than a busy program needs to ask again."""


LOOKS: Final = 96
"""The most looks for one request: some 120 microseconds, within which a program that only asks has asked again, even
where it takes 50 to wake it (virtual machines whose processors have gone to sleep)."""
_MORE: Final = 2
_REST: Final = 64
"""Requests without a look after looking has not been worth it."""


class Lookout:
    """Looks whether the next request is there, again and again, instead of sleeping until it is.

    To be woken costs more than to serve: the processor has gone to sleep and its caches are cold. But who looks in vain
    has taken a processor from others for several times as long, perhaps from who was going to ask. So the looks become
    a few more each time that they were worth it, and half as many each time that they were not, until there are none
    for a while; and a single processor is left to who is going to ask.
    """

    def __init__(self, processors: int) -> None:
        self._most = LOOKS if processors > 1 else 0  # immutable
        self._looks = self._most  # changed by look only, as is the next
        self._rest = 0

    def look(self, device: Device) -> int:
        """The length of the request that has come while looking, as `Device.receive`. Returns at once while it is not
        worth looking. Raises: Gone."""
        looks = self._looks
        if not looks:
            self._rest -= 1
            if self._rest > 0 or not self._most:
                return 0
            looks = self._most // 4
        for _ in range(looks):
            length = device.receive()
            if length:
                self._looks = min(looks + _MORE, self._most)
                return length
        self._looks = looks // 2
        self._rest = _REST
        return 0


def serve(
    device: Device,
    lookout: Lookout,
    dispatcher: Dispatcher,
    handle: Callable[[memoryview, int], Reply],
    refused: Callable[[bytes | memoryview], None],
    *,
    until: float,
    lingers: bool,
    has_served: bool,
) -> int:
    """Serve what is there, at most until `until` (monotonic), and say why it ends: IDLE, BUSY or SLOW.

    `lingers`: wait a moment for the next request, if there was one before; `has_served`: there was, in this turn.
    `refused` is given answers that the kernel finds malformed. Raises: Gone.
    """
    request, slow, session = device.request, dispatcher.slow, dispatcher.session
    afterwards = dispatcher.afterwards
    while not session.over:
        length = 0
        if has_served:
            if monotonic() > until:
                return BUSY
            length = lookout.look(device)
            if not length and lingers and not device.wait(LINGER_MS):
                return IDLE
        if not length:
            length = device.receive()
        if not length:
            return IDLE
        reply = handle(request, length)
        if reply is not None and not device.send(reply):
            refused(reply)
        has_served = True
        if afterwards.due:
            dispatcher.settle()
        if slow:
            return SLOW
    return BUSY
