"""The process that runs a container's hooks outside of it: in the host's pid namespace, with the host's root.

Hooks come with descriptions of devices (`containers.cdi`): they complete the container's root filesystem, for example
its cache of libraries. The process has a mount namespace in which the container's root, with all that is mounted in it,
is at the path that the bundle's config.json names. Mounts that a hook makes below that path show in the container.

prestart, createRuntime, createContainer   run before the command, in init's last step
startContainer                             runs in the container, see `launcher.command`
poststart, poststop                        run after the command has started, and at the end; failures are warnings

Source: OCI runtime specification, config.md "POSIX-platform Hooks", runtime.md "State".
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from typing import Final

from unionfs.launcher import bundle, hooks, userns
from unionfs.launcher.errors import LaunchError
from unionfs.launcher.spec import Hook, Spec
from unionfs.launcher.users import Account
from unionfs.printable import printable_line
from unionfs.syscalls.mounts import MS_PRIVATE, MS_REC, MS_SHARED, DetachedMount, mount, open_tree
from unionfs.syscalls.namespaces import CLONE_NEWNS, unshare
from unionfs.write_all import write_all

_EARLY: Final = ("prestart", "createRuntime", "createContainer")
_OF_INIT, _ROOT, _STARTED = b"i", b"r", b"s"  # first bytes of messages to the process
_LONGEST: Final = 8192


class HookProcess:
    """The process, as the monitor and init see it. Each method is called at most once."""

    def __init__(self, spec: Spec) -> None:
        """Fork the process. Preconditions: the container's pid namespace is not made yet; no pipe is open at
        whose other end a process waits for end of file. Raises: LaunchError, OSError."""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

        def serve() -> int:
            self._socket.close()
            return _Server(spec, theirs).serve()

        self._pid: Final = userns.fork(None, 0, serve)
        theirs.close()

    def tell_init(self, pid: int) -> None:
        """In the monitor: tell the process the pid of the container's init in our pid namespace."""
        self._send(_OF_INIT + b"%d" % pid)

    def run_early(self) -> None:
        """In init, in the container's complete root: have the process run the early hooks. Raises: LaunchError if one
        fails."""
        mount(None, "/", None, MS_REC | MS_SHARED)
        tree = open_tree("/")
        socket.send_fds(self._socket, [_ROOT], [tree.fd])
        tree.close()
        why = self._socket.recv(_LONGEST).decode(errors="replace")
        mount(None, "/", None, MS_REC | MS_PRIVATE)
        if why != "+":
            raise LaunchError("", "", why or "the process that runs hooks has ended")

    def started(self) -> None:
        """In the monitor: report that the command has been executed."""
        self._send(_STARTED)

    def end(self) -> None:
        """In the monitor, when the container has ended: have the last hooks run, and wait for the process."""
        self._socket.close()
        os.waitpid(self._pid, 0)

    def _send(self, message: bytes) -> None:
        with contextlib.suppress(OSError):  # the process has ended; init notices that
            self._socket.send(message)


class _Server:
    """The process itself."""

    def __init__(self, spec: Spec, end: socket.socket) -> None:
        self._spec: Final = spec
        self._end: Final = end
        self._init_pid = 0  # set once; 0: not known yet
        self._root: DetachedMount | None = None  # a copy of the container's mounts; None before, and after it is used
        self._has_begun = False  # the early hooks have succeeded

    def serve(self) -> int:
        """Answer until all other ends of the socket are closed; a process closes its end at the latest when it ends."""
        while message := self._receive():
            kind, rest = message[:1], message[1:]
            if kind == _OF_INIT:
                self._init_pid = int(rest)
            if kind == _STARTED:
                self._run_late("poststart", "running")
            if self._root and self._init_pid:
                why = self._begin(self._root)
                self._root = None
                with contextlib.suppress(OSError):  # init was killed meanwhile
                    self._end.send((why or "+").encode()[:_LONGEST])
        if self._has_begun:
            self._run_late("poststop", "stopped")
        return 0

    def _receive(self) -> bytes:
        try:
            message, fds, _, _ = socket.recv_fds(self._end, 64, 1, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            return b""
        if fds:
            self._root = DetachedMount(fds[0])
        return message

    def _begin(self, root: DetachedMount) -> str:
        """Run the early hooks. Return why one failed, or an empty text."""
        try:
            unshare(CLONE_NEWNS)
            mount(None, "/", None, MS_REC | MS_PRIVATE)
            root.attach(self._spec.rootfs)
            os.makedirs(self._spec.bundle, 0o700, exist_ok=True)
            with open(os.path.join(self._spec.bundle, "config.json"), "w", encoding="utf-8") as file:
                json.dump(bundle.config(self._spec, Account(0, 0, (), "/")), file)
        except OSError as error:
            return f"preparing the hooks failed: {error}"
        for point in _EARLY:
            for hook in self._at(point):
                if why := hooks.run(hook, self._state("creating")):
                    return f"the {point} hook {hook.path} failed: {why}"
        self._has_begun = True
        return ""

    def _run_late(self, point: str, status: str) -> None:
        for hook in self._at(point):
            if why := hooks.run(hook, self._state(status)):
                told = f"unionfs: warning: the {point} hook {hook.path} failed: {why}"
                write_all(2, f"{printable_line(told)}\n".encode(errors="replace"))

    def _at(self, point: str) -> list[Hook]:
        return [hook for name, hook in self._spec.hooks if name == point]

    def _state(self, status: str) -> bytes:
        return json.dumps(hooks.state(self._spec, status, self._init_pid)).encode()
