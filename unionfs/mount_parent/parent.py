"""The parent: started by an ordinary mount, it forks a daemon for each further mount by a process that is like it.

It is also the keeper of their mounts: when a daemon dies, it forks the next one (mount_parent.kept). So it holds what
the daemons have given it, and else a socket and a pidfd of each, and nothing of its callers: its directory is /, its
standard descriptors are /dev/null, its environment is empty, and it has its own mount namespace (fuse.detachment), so
it keeps none alive. It prints nothing, reads nothing from its clients, and waits only for new clients, and for the
messages and ends of its daemons, which continue if it is killed. It ends `client.linger_s` after its last mount. If the
files of its code have changed, it forks for nobody any more, and ends with the last mount that it keeps.
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

from unionfs.fuse import detachment, keeper_channel
from unionfs.fuse.keeper import is_reaped
from unionfs.mount_parent import client, forked, identity
from unionfs.mount_parent.forked import Origin, RunCommand
from unionfs.mount_parent.kept import Child
from unionfs.syscalls.namespaces import set_command_line, set_process_name

NAME: Final = "unionfs-parent"
"""The name in /proc/PID/comm and /proc/PID/cmdline."""

_COMMANDS: Final = ("unionfs.cli.mount", "unionfs.cli.mount_helper")
_LATER: Final = ("unionfs.daemon", "unionfs.daemon_state", "unionfs.fuse.kernel.activity", "unionfs.version")
"""What daemons and their keepers import later, besides daemon_service.LATE_MODULES: loaded here, its memory is shared.
"""
_BACKLOG: Final = 64
_FAREWELL_S: Final = 2.0
_DAY_S: Final = 86400.0  # poll(2) takes 24 days
_FDS_OF_MOUNT: Final = 24
"""Descriptors that a mount of a few branches needs here: its description, its connection, a pidfd."""
_SPARE_FDS: Final = 256
"""Descriptors in reserve."""
_LOOK_AGAIN_MS: Final = 5
"""While threads of a daemon are ending."""


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
        self._children: dict[int, Child] = {}  # pidfd -> our daemon, or `first`
        self._channels: dict[int, Child] = {}  # descriptor of its channel -> a daemon that may say something
        self._old: dict[int, int] = {}  # pidfd -> pid; of daemons whose threads wait for answers of the next one
        self._is_retired = False  # set once: it forks for nobody any more
        self._poll = select.poll()
        self._poll.register(listener, select.POLLIN)

    def serve(self, first: int) -> None:
        """Serve until this parent must end."""
        with suppress(OSError):
            self._wait_for(Child(first, None))
        until = monotonic() + self._linger_s
        while True:
            linger_s = until - monotonic()
            if self._is_retired:
                if not any(child.is_kept for child in self._children.values()):
                    return
            elif not self._children and linger_s <= 0:
                return
            ending = [pidfd for pidfd, child in self._children.items() if child.is_ending]
            wait_ms = _LOOK_AGAIN_MS if ending else None if self._children else min(linger_s, _DAY_S) * 1000
            ready = [fd for fd, _ in self._poll.poll(wait_ms)]
            for fd in ready:
                if fd in self._channels:
                    self._hear(fd)
            for fd in {*ready, *ending}:
                if fd in self._children:
                    self._look_at(fd)
                    until = monotonic() + self._linger_s
                elif fd in self._old and is_reaped(self._old[fd]):
                    del self._old[fd]
                    self._close(fd)
                elif fd == self._listener.fileno() and not self._is_retired:
                    self._accept()

    def _accept(self) -> None:
        """Fork a process for a client."""
        try:
            end, _ = self._listener.accept()
        except OSError:
            return  # the client has ended, or there is no free descriptor: others are closed soon
        with end, suppress(OSError):
            try:
                caller = identity.check_peer(end, self._own)
            except identity.DifferentError:
                if not self._is_current():
                    self._retire()
                return
            if not self._is_current():
                self._retire()
                with suppress(OSError):
                    end.send(client.RETIRED + b"its code or its surroundings have changed")
                    end.settimeout(_FAREWELL_S)
                    end.recv(1)  # until the client has closed: it checks this process before it reads
                return
            if len(os.listdir("/proc/self/fd")) + _FDS_OF_MOUNT + _SPARE_FDS > _fds_most():
                end.send(client.REFUSED + b"it has too many mounts")
                return
            self._fork(end, caller)

    def _fork(self, end: socket.socket, caller: int) -> None:
        """Raises: OSError."""
        ours, theirs = keeper_channel.connected()
        try:
            pid = os.fork()
        except OSError:  # RLIMIT_NPROC, memory
            ours.close()
            theirs.close()
            end.send(client.REFUSED + b"it cannot fork")
            return
        if pid == 0:
            ours.close()
            self._listener.close()
            for child in self._children.values():
                child.let_go()
            forked.run(end, caller, self._origin, theirs)
        theirs.close()
        self._wait_for(Child(pid, ours))
        end.send(client.ACCEPTED)

    def _retire(self) -> None:
        self._is_retired = True
        self._poll.unregister(self._listener)
        self._listener.close()

    def _wait_for(self, child: Child) -> None:
        pidfd = os.pidfd_open(child.pid)
        self._children[pidfd] = child
        self._poll.register(pidfd, select.POLLIN)
        if child.channel is not None:
            self._channels[child.channel.fileno()] = child
            self._poll.register(child.channel, select.POLLIN)

    def _hear(self, channel_fd: int) -> None:
        if not self._channels[channel_fd].take_messages():
            self._hear_no_more(channel_fd)

    def _hear_no_more(self, channel_fd: int) -> None:
        del self._channels[channel_fd]
        self._poll.unregister(channel_fd)

    def _look_at(self, pidfd: int) -> None:
        """See whether a child has ended, and go on with its mount."""
        child = self._children[pidfd]
        before, status = child.pid, child.status()
        if status is None:
            return
        del self._children[pidfd]
        for fd in [fd for fd, of in self._channels.items() if of is child]:
            child.take_messages()
            self._hear_no_more(fd)
        try:
            child.go_on(status)
            if child.pid != before:
                self._wait_for(child)
        except Exception:  # noqa: BLE001 - no process, no descriptor, a damaged record: other mounts are to go on
            child.let_go()
        if is_reaped(before):
            self._close(pidfd)
        else:
            self._old[pidfd] = before

    def _close(self, pidfd: int) -> None:
        self._poll.unregister(pidfd)
        os.close(pidfd)

    def _is_current(self) -> bool:
        return _files_of_code() == self._code and identity.facts() == self._own


def _fds_most() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


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
