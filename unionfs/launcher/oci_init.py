"""Process 1 of the pid namespace in which an OCI runtime (crun, runc) runs a container.

It writes the bundle, has the runtime create and start the container in a nested pid namespace, sends the container's
namespaces to the monitor, reaps, forwards signals, and ends with the container. If it is killed, the kernel kills all
processes in its pid namespace and in nested ones. The container cannot see it, so it keeps its capabilities.

Sources: OCI runtime specification, runtime.md; crun(1), runc(8); the protocol of --console-socket as runc documents it
(docs/terminals.md).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import sys
import termios
from typing import Final, NoReturn

from unionfs import store_files
from unionfs.launcher import bundle, init, steps, users
from unionfs.launcher.errors import NOT_EXECUTABLE, NOT_FOUND, OWN_FAILURE, LaunchError
from unionfs.launcher.init import InitContext
from unionfs.launcher.spec import Spec
from unionfs.launcher.userns import reset_signals
from unionfs.syscalls.mounts import MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_PRIVATE, MS_REC, mount
from unionfs.syscalls.namespaces import CLONE_NEWNS, unshare

_CONTAINER: Final = "unionfs"  # the container's name; its state directory holds no other
_CGROUPS: Final = "/sys/fs/cgroup"
_CONSOLE: Final = "console"
_RESTRICTED: Final = MS_NOSUID | MS_NODEV | MS_NOEXEC
_NAMES: Final = ("user", "mnt", "pid", "uts", "ipc", "net", "cgroup")
_LOG_MAX: Final = 16 << 10
_MISSING: Final = ("not found", "no such file or directory")
_FORBIDDEN: Final = ("permission denied", "is a directory", "operation not permitted")


def run(spec: Spec, context: InitContext) -> NoReturn:
    """Run the container through the OCI runtime, and exit with its command's exit code.

    Preconditions: process 1 of a new pid namespace, all signals blocked.
    """
    status = OWN_FAILURE
    try:
        init.die_with_parent(context.alive_fd)
        init.hide_host_details()
        os.umask(0o022)
        status = _OciInit(spec, context).run()
    except Exception as error:  # noqa: BLE001 - no process above this one in the namespace could report it
        init.report_failure(error, context)
        if isinstance(error, LaunchError):
            status = error.status
    finally:
        os._exit(status)


class _OciInit:
    def __init__(self, spec: Spec, context: InitContext) -> None:
        self._spec: Final = spec
        self._context: Final = context
        self._bundle: Final = spec.bundle
        self._log: Final = os.path.join(spec.bundle, "runtime.log")
        self._ended: Final[dict[int, int]] = {}  # pid -> wait status of children reaped while the runtime ran; added to
        self._is_crun: Final = "crun" in os.path.basename(spec.runtime)

    def run(self) -> int:
        unshare(CLONE_NEWNS)
        mount(None, "/", None, MS_REC | MS_PRIVATE)
        mount("proc", "/proc", "proc", _RESTRICTED)
        if self._is_crun:
            _mount_cgroups()
        if self._spec.own_network:
            steps.Loopback().execute()
        self._write_bundle()
        pid = self._create()
        try:
            if self._context.namespace_server:
                _send_namespaces(self._context, pid)
            self._context.wait_until_reported()
            self._run_runtime("start", _CONTAINER)
            os.close(self._context.exec_status_fd)  # closed without a byte: the command was executed
            if pid in self._ended:
                return init.exit_status(self._ended[pid])
            init.close_descriptors()
            return init.reap_until_exit(pid)
        finally:
            with contextlib.suppress(LaunchError):
                self._run_runtime("delete", "--force", _CONTAINER)

    def _write_bundle(self) -> None:
        os.makedirs(self._bundle, 0o700)
        root_fd = os.open(self._spec.rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            identity = users.look_up(self._spec.process.user, root_fd)
        finally:
            os.close(root_fd)
        self._check(identity)
        text = json.dumps(bundle.config(self._spec, identity), indent=1, ensure_ascii=False)
        store_files.write_file(os.path.join(self._bundle, "config.json"), text.encode(errors="surrogateescape"))

    def _check(self, identity: users.Account) -> None:
        id_map = self._spec.id_map
        if id_map is not None and not (id_map.has_uid(identity.uid) and id_map.has_gid(identity.gid)):
            why = f"{identity.uid}:{identity.gid} is not in the container's id map"
            raise LaunchError("changing the user", self._spec.process.user, why)

    def _create(self) -> int:
        """Have the runtime create the container. Return its process 1, our child once the runtime has ended."""
        listener = self._listen() if self._spec.process.terminal else None
        console = ("--console-socket", _CONSOLE) if listener else ()
        pid_file = os.path.join(self._bundle, "pid")
        words = ("create", "--bundle", self._bundle, "--pid-file", pid_file, *console, _CONTAINER)
        self._run_runtime(*words, inherits_output=listener is None)
        if listener:
            self._receive_console(listener)
        with open(pid_file, encoding="ascii") as file:
            return int(file.read())

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        os.chdir(self._bundle)  # the path may be too long for a socket address (unix(7))
        listener.bind(_CONSOLE)
        listener.listen(1)
        return listener

    def _receive_console(self, listener: socket.socket) -> None:
        console = self._context.console
        assert console is not None
        listener.settimeout(20)
        with listener, listener.accept()[0] as runtime:
            _, (master, *_), _, _ = socket.recv_fds(runtime, 4096, 1)
        if console.size:
            fcntl.ioctl(master, termios.TIOCSWINSZ, console.size)
        console.send(master)
        os.close(master)

    def _run_runtime(self, *words: str, inherits_output: bool = False) -> None:
        """Run a command of the runtime. With `inherits_output` the container inherits its standard descriptors.

        Raises: LaunchError with the error that it logged.
        """
        manager = ("--cgroup-manager=disabled",) if self._is_crun else ()
        state = os.path.join(self._bundle, "state")
        command = [self._spec.runtime, *manager, "--root", state, "--log", self._log, "--log-format", "json", *words]
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            self._become(command, inherits_output=inherits_output)
        while True:  # the container is our child, too, and may end before the runtime has
            ended, status = os.waitpid(-1, 0)
            if ended == pid:
                break
            self._ended[ended] = status
        if status:
            raise self._failure(words[0])

    def _become(self, command: list[str], *, inherits_output: bool) -> NoReturn:
        try:
            reset_signals()
            null_fd = os.open(os.devnull, os.O_RDWR)
            if not inherits_output:
                for fd in (0, 1, 2):
                    os.dup2(null_fd, fd)
            else:
                if self._context.capture:
                    self._context.capture.redirect_output()
                if not self._spec.process.interactive:
                    os.dup2(null_fd, 0)
            os.execvp(command[0], command)
        finally:
            os._exit(OWN_FAILURE)

    def _failure(self, verb: str) -> LaunchError:
        """Return the last error of the runtime's log as a LaunchError with docker's exit code."""
        name = os.path.basename(self._spec.runtime)
        why = self._last_logged_error() or f"{name} {verb} failed"
        plain = why.lower()
        if any(word in plain for word in ("exec", "executable", repr(self._spec.process.command[0]))):
            for words, status in ((_MISSING, NOT_FOUND), (_FORBIDDEN, NOT_EXECUTABLE)):
                if any(word in plain for word in words):
                    return LaunchError("executing", self._spec.process.command[0], f"{name}: {why}", status=status)
        return LaunchError(f"{name} {verb}", "", why)

    def _last_logged_error(self) -> str:
        try:
            with open(store_files.open_file(self._log, os.O_RDONLY), "rb") as file:
                lines = file.read()[-_LOG_MAX:].decode(errors="replace").splitlines()
        except FileNotFoundError:
            return ""
        for line in reversed(lines):
            with contextlib.suppress(ValueError, TypeError, KeyError):
                entry = json.loads(line)
                if entry.get("level") in ("error", "fatal", None):
                    return str(entry["msg"])
        return lines[-1] if lines else ""


def _send_namespaces(context: InitContext, pid: int) -> None:
    """Send the container's namespaces to the monitor, which sends them to clients."""
    assert context.namespace_server is not None
    fds = [os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in _NAMES]
    root_fd = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    context.namespace_server.send_all((*fds, root_fd))
    for fd in (*fds, root_fd):
        os.close(fd)


def _mount_cgroups() -> None:
    """Mount cgroup2 alone, because crun refuses a hierarchy in which the two versions are mixed."""
    with contextlib.suppress(OSError):
        mount("tmpfs", _CGROUPS, "tmpfs", _RESTRICTED, "size=64k,mode=755")
        mount("cgroup2", _CGROUPS, "cgroup2", _RESTRICTED)
