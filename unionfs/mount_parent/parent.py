"""The parent: started by an ordinary mount, it forks a daemon for each further mount by a process that is like it.

It has a socket and a pidfd of each daemon, and nothing of its callers: its directory is /, its
standard descriptors are /dev/null, its environment is empty, and it has its own mount namespace (fuse.detachment), so
it keeps none alive. It prints nothing, reads nothing from its clients, and waits only for new clients and the ends
of its daemons, which continue if it is killed. It ends `client.linger_s` after its last mount, or if the
files of its code have changed.
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
from time import monotonic
from typing import Final, NoReturn

from unionfs.fuse import detachment
from unionfs.mount_parent import client, forked, identity
from unionfs.mount_parent.forked import Origin, RunCommand
from unionfs.syscalls.namespaces import set_command_line, set_process_name

NAME: Final = "unionfs-parent"
"""The name in /proc/PID/comm and /proc/PID/cmdline."""

_COMMANDS: Final = ("unionfs.cli.mount", "unionfs.cli.mount_helper")
_LATER: Final = ("unionfs.daemon", "unionfs.daemon_state", "unionfs.fuse.kernel.activity")
"""What daemons and their keepers import later, besides daemon_service.LATE_MODULES: loaded here, its memory is shared.
"""
_BACKLOG: Final = 64
_FAREWELL_S: Final = 2.0
_DAY_S: Final = 86400.0  # poll(2) takes 24 days
_SPARE_FDS: Final = 32
"""Number of descriptors in reserve. Of the others, each daemon needs one."""


def run(first: int, linger_s: float, idle_s: float, run_command: RunCommand) -> NoReturn:
    """Run the parent (see `mount_parent.leave`) in a detached process that was forked for it.

    It imports the modules of daemons after it listens at its socket.
    """
    os.chdir("/")
    own, origin = identity.facts(), Origin(os.getpid(), identity.code(), run_command)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        listener.bind(identity.address(own))
        listener.listen(_BACKLOG)  # clients wait until we are ready, which takes less time than an ordinary mount
    except OSError:
        os._exit(0)  # another parent was faster
    os.environb.clear()
    set_process_name(NAME)
    set_command_line(NAME)
    detachment.leave_namespace()
    code = _files_of_code()
    select.select([listener], [], [], idle_s)
    _import_all()
    if code.items() - _files_of_code().items():
        os._exit(0)  # its modules would be of two versions
    gc.freeze()  # a collection would write to pages that the daemons share
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    _Parent(listener, own, linger_s, origin).serve(first)
    os._exit(0)


def _import_all() -> None:
    from unionfs import daemon_service

    for module in (*daemon_service.MODULES, *daemon_service.LATE_MODULES, *_LATER, *_COMMANDS):
        with suppress(ImportError):
            import_module(module)


class _Parent:
    """The loop of the parent."""

    def __init__(self, listener: socket.socket, own: list[tuple[str, str]], linger_s: float, origin: Origin) -> None:
        self._listener = listener  # immutable
        self._own = own  # immutable
        self._linger_s = linger_s  # immutable
        self._origin = origin  # immutable
        self._code = _files_of_code()  # immutable
        self._daemons: dict[int, int] = {}  # pidfd -> pid; of our daemons, and of `first`
        self._poll = select.poll()
        self._poll.register(listener, select.POLLIN)

    def serve(self, first: int) -> None:
        """Serve until this parent must end."""
        with suppress(OSError):
            self._wait_for(first)
        until = monotonic() + self._linger_s
        while True:
            left_s = until - monotonic()
            if not self._daemons and left_s <= 0:
                return
            for fd, _ in self._poll.poll(None if self._daemons else min(left_s, _DAY_S) * 1000):
                if fd == self._listener.fileno():
                    if not self._accept():
                        return
                else:
                    self._forget(fd)
                    until = monotonic() + self._linger_s

    def _accept(self) -> bool:
        """Fork a process for a client. Returns False if this parent is to end."""
        try:
            end, _ = self._listener.accept()
        except OSError:
            return True  # the client has ended, or there is no free descriptor: others are closed soon
        with end, suppress(OSError):
            try:
                caller = identity.check_peer(end, self._own)
            except identity.DifferentError:
                return self._is_current()
            if not self._is_current():
                self._listener.close()
                with suppress(OSError):
                    end.send(client.RETIRED + b"its code or its surroundings have changed")
                    end.settimeout(_FAREWELL_S)
                    end.recv(1)  # until the client has closed: it checks this process before it reads
                return False
            if len(self._daemons) >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _SPARE_FDS:
                end.send(client.REFUSED + b"it has too many mounts")
                return True
            try:
                pid = os.fork()
            except OSError:  # RLIMIT_NPROC, memory
                end.send(client.REFUSED + b"it cannot fork")
                return True
            if pid == 0:
                self._listener.close()
                forked.run(end, caller, self._origin)
            self._wait_for(pid)
            end.send(client.ACCEPTED)
        return True

    def _wait_for(self, pid: int) -> None:
        pidfd = os.pidfd_open(pid)
        self._daemons[pidfd] = pid
        self._poll.register(pidfd, select.POLLIN)

    def _forget(self, pidfd: int) -> None:
        with suppress(ChildProcessError):  # `first` is not our child
            os.waitpid(self._daemons[pidfd], 0)
        self._poll.unregister(pidfd)
        del self._daemons[pidfd]
        os.close(pidfd)

    def _is_current(self) -> bool:
        return _files_of_code() == self._code and identity.facts() == self._own


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
