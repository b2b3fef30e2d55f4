"""The loop of the parent: it forks a process for each client, and the next daemon of a mount whose daemon has died."""

from __future__ import annotations

import os
import resource
import select
import socket
from collections.abc import Callable
from contextlib import suppress
from math import inf
from time import monotonic, sleep
from typing import Final

from unionfs.fuse import keeper_channel
from unionfs.fuse.keeper import is_reaped
from unionfs.mount_parent import client, forked, identity
from unionfs.mount_parent.forked import Origin
from unionfs.mount_parent.kept import Child

_FAREWELL_S: Final = 2.0
_DAY_S: Final = 86400.0  # poll(2) takes 24 days
_FDS_OF_MOUNT: Final = 24
"""Descriptors that a mount of a few branches needs here: its description, its connection, a pidfd."""
_SPARE_FDS: Final = 256
"""Descriptors in reserve."""
_IMPORT_AFTER_S: Final = 1.0
"""After the start of a first container: not before its command has begun."""
_LOOK_AGAIN_MS: Final = 5
"""Milliseconds between two looks at a daemon whose threads are ending."""


class Loop:
    """The loop of the parent."""

    def __init__(
        self,
        listener: socket.socket,
        own: list[tuple[str, str]],
        linger_s: float,
        origin: Origin,
        is_current: Callable[[], bool],
        import_one: Callable[[], bool],
    ) -> None:
        """`own`: the parent's facts; `is_current`: returns whether its code and surroundings are unchanged;
        `import_one`: imports the next module of `unionfs run`, and returns False when there is none."""
        self._listener = listener  # immutable
        self._own = own  # immutable
        self._linger_s = linger_s  # immutable
        self._origin = origin  # immutable
        self._is_current = is_current  # immutable
        self._import_one = import_one  # immutable
        self._import_at: float | None = None  # when to call it; inf: not any more; set when a first container has begun
        self._children: dict[int, Child] = {}  # pidfd -> our daemon, or `first`
        self._channels: dict[int, Child] = {}  # descriptor of its channel -> a daemon that may send messages
        self._old: dict[int, int] = {}  # pidfd -> pid; of daemons whose threads wait for answers of the next one
        self._late: list[Child] = []  # of which another process is due
        self._is_retired = False  # set once: it forks no further daemons
        self._poll = select.poll()
        if listener.fileno() >= 0:
            self._poll.register(listener, select.POLLIN)
        else:
            self._is_retired = True  # another parent has the name

    def serve(self, first: Child) -> None:
        """Serve until this parent must end."""
        with suppress(OSError):
            self._wait_for(first)
            for fd in [*self._channels]:
                self._hear(fd)  # its description has come, or does not come
        until = monotonic() + self._linger_s
        while True:
            linger_s = until - monotonic()
            if self._is_retired:
                if not any(child.is_kept for child in (*self._children.values(), *self._late)):
                    return
            elif not self._children and not self._late and linger_s <= 0:
                return
            ending = [pidfd for pidfd, child in self._children.items() if child.is_ending]
            ready = [fd for fd, _ in self._poll.poll(self._wait_ms(bool(ending), linger_s))]
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
            self._go_on()
            if self._import_at is not None and self._import_at <= monotonic():
                self._import_at = monotonic() if self._import_one() else inf

    def _wait_ms(self, is_ending: bool, linger_s: float) -> float | None:
        """Return for how long nothing is to be done; None: for any time."""
        if is_ending:
            return _LOOK_AGAIN_MS
        due = [child.due or 0.0 for child in self._late]
        if self._import_at is not None and self._import_at != inf:
            due.append(self._import_at)
        if due:
            return max(0.0, min(due) - monotonic()) * 1000
        return None if self._children else min(linger_s, _DAY_S) * 1000

    def _accept(self) -> None:
        """Fork a process for a client."""
        try:
            end, _ = self._listener.accept()
        except ConnectionError:
            return
        except OSError:
            sleep(_LOOK_AGAIN_MS / 1000)  # there is no free descriptor: the client waits
            return
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
            for child in (*self._children.values(), *self._late):
                child.let_go()
            for pidfd in (*self._children, *self._old):
                os.close(pidfd)
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
        child = self._channels[channel_fd]
        if not child.take_messages():
            self._hear_no_more(channel_fd)
        if child.is_container and self._import_at is None:
            self._import_at = monotonic() + _IMPORT_AFTER_S

    def _hear_no_more(self, channel_fd: int) -> None:
        del self._channels[channel_fd]
        self._poll.unregister(channel_fd)

    def _look_at(self, pidfd: int) -> None:
        """Check whether a child has ended, and whether another process is to continue its mount."""
        child = self._children[pidfd]
        before, status = child.pid, child.status()
        if status is None:
            return
        del self._children[pidfd]
        for fd in [fd for fd, of in self._channels.items() if of is child]:
            child.take_messages()
            self._hear_no_more(fd)
        child.end(status)
        if is_reaped(before):
            self._close(pidfd)
        else:
            self._old[pidfd] = before
        if child.due is not None:
            self._late.append(child)

    def _go_on(self) -> None:
        """Fork the processes that are due."""
        now = monotonic()
        for child in [child for child in self._late if child.due is None or child.due <= now]:
            self._late.remove(child)
            try:
                if child.go_on():
                    self._wait_for(child)
                elif child.due is not None:
                    self._late.append(child)
            except Exception:  # noqa: BLE001 - a damaged record; no descriptor for a daemon, which goes on unkept
                child.let_go()

    def _close(self, pidfd: int) -> None:
        self._poll.unregister(pidfd)
        os.close(pidfd)


def _fds_most() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
