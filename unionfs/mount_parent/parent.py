"""The parent: started by an ordinary mount, it forks a daemon for each further mount by a process with the same
properties.

It is also the keeper of their mounts: when a daemon dies, it forks the next one (mount_parent.kept). So it has the
descriptors that the daemons have sent it, a socket and a pidfd of each daemon, and nothing of its callers: its
directory is /, its standard descriptors are /dev/null, its environment is empty, and its mount namespace is its own
(fuse.detachment), so it keeps no other one alive. It prints nothing, reads nothing from its clients, and waits only for
new clients, and for messages and ends of its daemons, which continue if it is killed. It ends `client.linger_s` after
its last mount. If the files of its code have changed, it forks no further daemons, and ends with the last mount that it
keeps.
"""

from __future__ import annotations

import gc
import os
import resource
import select
import socket
import sys
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Final, NoReturn

from unionfs.fuse import detachment
from unionfs.mount_parent import identity
from unionfs.mount_parent.forked import Origin, RunCommand
from unionfs.syscalls.namespaces import set_command_line, set_process_name

if TYPE_CHECKING:
    from unionfs.fuse.keeper_channel import Channel

NAME: Final = "unionfs-parent"
"""The name in /proc/PID/comm and /proc/PID/cmdline."""

_OF_MOUNT: Final = ("unionfs.cli.mount", "unionfs.cli.mount_helper")
_OF_RUN: Final = (
    "unionfs.cli.run",
    *("layers.store", "layers.lookup", "unionfs.containers.images", "unionfs.containers.image_mount"),
    *("unionfs.containers.scratch", "unionfs.launcher.namespace_socket", "unionfs.launcher.supervisor"),
)
"""Modules of `unionfs run`: they take a third of the memory, so they are imported for the first client that needs
them."""
_LATER: Final = ("unionfs.daemon.process", "unionfs.daemon.state", "unionfs.fuse.kernel.activity", "unionfs.version")
"""Modules that daemons and their keepers import later, besides mounted_union.LATE_MODULES: imported here, their memory
is shared."""
_BACKLOG: Final = 64


def run(first: int, channel: Channel | None, linger_s: float, idle_s: float, run_command: RunCommand) -> NoReturn:
    """Run the parent (see `mount_parent.leave`) in a detached process that was forked for it. `channel`: to `first`, if
    that is its child, and the parent is to keep its mount; None: a container has left it.

    It imports the modules of daemons after it listens at its socket, and then for `idle_s` seconds no client or message
    has come.
    """
    os.chdir("/")
    own, origin = identity.facts(), Origin(os.getpid(), identity.code(), run_command)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        listener.bind(identity.address(own))
        listener.listen(_BACKLOG)  # clients wait until we are ready, which takes less time than an ordinary mount
    except OSError:  # another parent was faster
        if channel is None:
            os._exit(0)
        listener.close()
    if channel is not None:
        channel.listens()
    os.environb.clear()
    set_process_name(NAME)
    set_command_line(NAME)
    detachment.leave_namespace()
    code = _files_of_code()
    waits_for = [each for each in (listener, channel) if each is not None and each.fileno() >= 0]
    select.select(waits_for, [], [], idle_s)
    if channel is not None and channel.is_closed:
        os._exit(0)  # its mount has failed
    _import_all(with_run=channel is None)
    if code.items() - _files_of_code().items():
        os._exit(0)  # its modules would be of two versions
    gc.freeze()  # a collection would write to pages that the daemons share
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    from unionfs.mount_parent.kept import Child  # late: they import the modules of daemons
    from unionfs.mount_parent.loop import Loop

    code = _files_of_code()

    def is_current() -> bool:
        return _files_of_code() == code and identity.facts() == own

    def import_of_run() -> None:
        nonlocal code
        if is_current():
            _import(_OF_RUN)
            gc.freeze()
            code = _files_of_code()

    Loop(listener, own, linger_s, origin, is_current, import_of_run).serve(Child(first, channel))
    os._exit(0)


def _import_all(*, with_run: bool) -> None:
    from unionfs.daemon import mounted_union

    import_module("unionfs.mount_parent.loop")
    _import((*mounted_union.MODULES, *mounted_union.LATE_MODULES, *_LATER, *_OF_MOUNT, *(_OF_RUN if with_run else ())))


def _import(modules: tuple[str, ...]) -> None:
    for module in modules:
        with suppress(ImportError):
            import_module(module)


def _files_of_code() -> dict[str, tuple[int, int, int]]:
    """Describe the file of each module of ours, and of Python."""
    ours = [module for name, module in sys.modules.items() if name.partition(".")[0] == "unionfs"]
    paths = {sys.executable, *(path for module in ours if (path := getattr(module, "__file__", None)))}
    found = {}
    for path in paths:
        try:
            st = os.stat(path)
            found[path] = (st.st_ino, st.st_size, st.st_mtime_ns)
        except OSError:
            found[path] = (0, 0, 0)
    return found
