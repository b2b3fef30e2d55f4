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
from typing import TYPE_CHECKING, Final, NoReturn

from unionfs.fuse import detachment, keeper_channel
from unionfs.mount_parent import forked, identity
from unionfs.mount_parent.forked import Origin, RunCommand
from unionfs.syscalls.namespaces import set_command_line, set_process_name

if TYPE_CHECKING:
    from unionfs.fuse.keeper_channel import Channel

NAME: Final = "unionfs-parent"
"""The name in /proc/PID/comm and /proc/PID/cmdline."""

_OF_MOUNT: Final = ("unionfs.cli.mount", "unionfs.cli.mount_helper")
_LATER: Final = ("unionfs.daemon.process", "unionfs.daemon.state", "unionfs.fuse.kernel.activity", "unionfs.version")
"""Modules that daemons and their keepers import later, besides mounted_union.LATE_MODULES: imported here, their memory
is shared."""
_BACKLOG: Final = 64

_Stamp = tuple[int, int, int]  # inode number, size in bytes, time of the last change in nanoseconds


def run(first: int, channel: Channel | None, linger_s: float, idle_s: float, run_command: RunCommand) -> NoReturn:
    """Run the parent (see `mount_parent.leave`) in a detached process that was forked for it. `channel`: to `first`, if
    that is its child, and the parent is to keep its mount; None: a container has left it.

    It imports the modules of daemons after it listens at its socket, and then for `idle_s` seconds no client or message
    has come.
    """
    os.chdir("/")
    is_container = channel is None
    own, origin = identity.facts(), Origin(os.getpid(), identity.code(), run_command)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        listener.bind(identity.address(own))
        listener.listen(_BACKLOG)  # clients wait until we are ready, which takes less time than an ordinary mount
    except OSError:  # another parent was faster
        if is_container:
            os._exit(0)
        listener.close()
    if channel is not None:
        channel.listens()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.environb.clear()
    set_process_name(NAME)
    set_command_line(NAME)
    detachment.leave_namespace()
    code = _files_of_code()
    waits_for = [each for each in (listener, channel) if each is not None and each.fileno() >= 0]
    select.select(waits_for, [], [], idle_s)
    from unionfs.daemon import mounted_union  # late: these modules are those of daemons

    for module in (*mounted_union.MODULES, *mounted_union.LATE_MODULES, *_LATER, *_OF_MOUNT):
        channel = _read_ahead(channel)
        forked.import_present([module])
    of_run = iter(forked.OF_RUN)
    if is_container:
        forked.import_present([*of_run])
    from unionfs.mount_parent.kept import Child
    from unionfs.mount_parent.loop import Loop

    if code.items() - _files_of_code().items():
        os._exit(0)  # its modules would be of two versions
    gc.freeze()  # a collection would write to pages that the daemons share
    code, imported = _files_of_code(), len(sys.modules)

    def is_current() -> bool:
        # Going through the modules writes reference counts to many pages, which each fork has made shared again.
        is_complete = len(sys.modules) == imported
        found = {path: _stamp(path) for path in code} if is_complete else _files_of_code()
        return found == code and identity.facts() == own

    def import_one() -> bool:
        nonlocal code, imported
        module = next(of_run, None)
        if module is None or not is_current():
            return False
        forked.import_present([module])
        code, imported = _files_of_code(), len(sys.modules)
        return True

    Loop(listener, own, linger_s, origin, is_current, import_one).serve(Child(first, channel))
    os._exit(0)


def _read_ahead(channel: Channel | None) -> Channel | None:
    """Receive the messages of the first mount between imports: when it ends, it waits for this parent to close its
    descriptors. Returns None when it has ended; ends this process if it has failed."""
    said = None if channel is None else channel.read_ahead()
    if said == b"":
        os._exit(0)
    return None if said == keeper_channel.OVER else channel


def _files_of_code() -> dict[str, _Stamp]:
    """Describe the file of each module of ours, and of Python."""
    ours = [module for name, module in sys.modules.items() if name.partition(".")[0] == "unionfs"]
    paths = (sys.executable, *(getattr(module, "__file__", None) for module in ours))
    return {path: _stamp(path) for path in paths if path}


def _stamp(path: str) -> _Stamp:
    try:
        st = os.stat(path)
    except OSError:
        return 0, 0, 0
    return st.st_ino, st.st_size, st.st_mtime_ns
