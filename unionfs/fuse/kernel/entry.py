"""Serves a mount from its first request to its last. Imports nothing heavy before it can answer."""

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

_MODULES: Final = ("attr", "ssl", "outcome", "sortedcontainers", "subprocess", "trio", "unionfs.fuse.kernel.server")
"""Modules that the loop needs, imported one by one: trio after those that it imports itself. Some of those may be
missing with other versions of trio."""

_MANY: Final = 512
"""With an RLIMIT_NOFILE from this on, the first requests leave enough descriptors for the loop."""


def serve(
    fd: int,
    union: Union,
    *,
    options: ServeOptions,
    tuning: Tuning | None = None,
    traffic: Session | None = None,
    notifier: Notifier | None = None,
    startup_tasks: Sequence[early.StartupTask] = (),
) -> None:
    """Answer the requests that arrive on `fd`, a mounted /dev/fuse, until the union is unmounted. Closes `fd`. On the
    main thread.

    `traffic`: a session that was negotiated already (see `handshake`); `options` and `tuning` are then ignored.
    `notifier`: sends the kernel invalidations for changes behind the mount. `startup_tasks`: run in this order, between
    the first requests.
    Raises: UnsupportedError when the kernel and this engine have no protocol in common; what a task raises.
    """
    session = traffic or Session(options, tuning or Tuning())
    startup_tasks = [*(partial(_import, name) for name in _MODULES), *startup_tasks]
    with ExitStack() as held:
        held.callback(os.close, fd)
        spare = SpareProcessor()
        held.callback(spare.close)
        device, dispatcher = Device(fd), Dispatcher(union, session)
        busy_poll = BusyPoll(session.options.busy_poll, spare.is_available)
        with suppress(Gone):
            if notifier is None and resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= _MANY:
                early.serve(device, busy_poll, dispatcher, startup_tasks)
            else:  # the first answer may cause a notification, or take the last descriptor
                for task in startup_tasks:
                    task()
            from unionfs.fuse.kernel import server

            server.run(device, busy_poll, dispatcher, notifier)


def _import(module: str) -> None:
    with suppress(ImportError):
        import_module(module)
