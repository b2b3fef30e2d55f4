"""The way in: serve a mount from its first request to its last. Imports nothing heavy before it can answer."""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Final

from unionfs.core.union import Union
from unionfs.fuse.kernel import early
from unionfs.fuse.kernel.busy_poll import BusyPoll
from unionfs.fuse.kernel.device import Device, Gone
from unionfs.fuse.kernel.dispatch import Dispatcher
from unionfs.fuse.kernel.session import Session, Tuning
from unionfs.fuse.options import ServeOptions
from unionfs.syscalls.processors import SpareProcessor

if TYPE_CHECKING:
    from unionfs.fuse.watching import Notifier

_PORTIONS: Final = ("attr", "ssl", "outcome", "sortedcontainers", "subprocess", "trio", "unionfs.fuse.kernel.server")
"""What the loop needs, in portions: trio last, after what it imports itself and can be had alone. Any of that may be
missing with other versions of trio."""

_MANY: Final = 512
"""With so many descriptors the first requests leave some for the loop, whatever they ask for."""


def serve(
    fd: int,
    union: Union,
    *,
    options: ServeOptions,
    tuning: Tuning | None = None,
    traffic: Session | None = None,
    notifier: Notifier | None = None,
    chores: Sequence[early.Chore] = (),
) -> None:
    """Answer the requests that arrive on `fd`, a mounted /dev/fuse, until the union is unmounted. Closes `fd`. On the
    main thread.

    `traffic`: a session that has been negotiated already (see `handshake`); it goes before `options` and `tuning`.
    `notifier`: tells the kernel of changes that others make to the branches. `chores`: what else is to be done at the
    start, for which nobody should have to wait; done in this order.
    Raises: UnsupportedError when the kernel and this engine have no protocol in common; what a chore raises.
    """
    session = traffic or Session(options, tuning or Tuning())
    chores = [*(partial(_import, name) for name in _PORTIONS), *chores]
    with ExitStack() as held:
        held.callback(os.close, fd)
        spare = SpareProcessor()
        held.callback(spare.close)
        device, dispatcher = Device(fd), Dispatcher(union, session)
        busy_poll = BusyPoll(session.options.busy_poll, spare.is_available)
        with suppress(Gone):
            if notifier is None and resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= _MANY:
                early.serve(device, busy_poll, dispatcher, chores)
            else:  # the first answer may already be worth a notification; or leave no descriptor for what comes later
                for chore in chores:
                    chore()
            from unionfs.fuse.kernel import server

            server.run(device, busy_poll, dispatcher, notifier)


def _import(portion: str) -> None:
    with suppress(ImportError):
        import_module(portion)
