"""A process that has imported the modules of the command line, and forks for each `unionfs` or `layers` of the tests.

Half of the processor time of tests that run commands was the start of Python. A worker starts one server for each of
its users, a program that is executed as that user. For each command it forks a child, which takes over the inherited
properties: arguments, working directory, environment, umask, standard descriptors, in a session of its own. Then the
child runs the command's `main`, as the console script does.

A command is executed as a program if a server's child would differ from it: with other namespaces or ids than those of
the tests, with a variable of the environment that Python reads at its start, or if UNIONFS_TESTS_EXECUTE is set.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NoReturn

from tests.support import process
from tests.support.timing import limit

_EXECUTE: Final = "UNIONFS_TESTS_EXECUTE"
_READ_AT_START: Final = ("PYTHON", "LD_", "LC_", "LANG", "TZ", "MALLOC", "UNIONFS_PURE")
_PIPE_BYTES: Final = 65536  # bytes that a pipe takes without a reader
_PROGRAMS: Final = {"unionfs": "unionfs.__main__", "layers": "unionfs.cli.layers"}
_PRELOADED: Final = ("unionfs.cli", "unionfs.containers", "unionfs.launcher", "unionfs.changes", "layers")
_NOT_PRELOADED: Final = ("layers.explore",)
_ROOM: Final = 3000  # bytes for the command line that /proc shows
_NAMESPACES: Final = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")


class _TooLongError(Exception):
    """The time is over. Carries the output so far."""


class CommandServer:
    """The end of the connection in the tests. Any thread may run a command."""

    def __init__(self, prefix: Sequence[str], env: Mapping[str, str]) -> None:
        self._tester = _identity()  # immutable
        self._env = dict(env)  # immutable
        self._end, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            argv = [*prefix, sys.executable, "-m", __name__, str(theirs.fileno()), " " * _ROOM]
            self._process = subprocess.Popen(
                argv, cwd="/", env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()], start_new_session=True,
            )  # fmt: skip

    def close(self) -> None:
        """End the server. Commands that still run go on."""
        self._end.close()
        self._process.wait(timeout=limit(30))

    def has_ended(self) -> bool:
        """Whether the server has ended: a test may kill all processes of its user."""
        return self._process.poll() is not None

    def is_for(self, env: Mapping[str, str], stdin: str | None) -> bool:
        """Whether a child of the server would behave like an executed program."""
        changed = {name for name, _ in self._env.items() ^ env.items()}
        return (
            _identity() == self._tester
            and not any(name.startswith(_READ_AT_START) for name in changed)
            and (stdin is None or len(stdin) < _PIPE_BYTES // 4)
        )

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: str | None,
        cwd: str,
        env: Mapping[str, str],
        timeout_s: float,
        check: bool,
    ) -> subprocess.CompletedProcess[str]:
        """Run `argv`, a name in _PROGRAMS and its arguments, to its end. Raises: process.ChildError."""
        ours, theirs = socket.socketpair()
        in_read, in_write = os.pipe() if stdin is not None else (os.open(os.devnull, os.O_RDWR), -1)
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        mine, given = [out_read, err_read], [in_read, out_write, err_write]
        try:
            socket.send_fds(self._end, [b"+"], [theirs.fileno(), *given])
        finally:
            theirs.close()
            for fd in given:
                os.close(fd)
        if stdin is not None:
            with suppress(BrokenPipeError):
                os.write(in_write, stdin.encode(errors="surrogateescape"))
            os.close(in_write)
        output = {fd: bytearray() for fd in mine}
        try:
            with ours:
                request = {"argv": list(argv), "cwd": cwd, "env": dict(env), "umask": _umask()}
                ours.sendall(json.dumps(request).encode())
                ours.shutdown(socket.SHUT_WR)
                status = _await(ours, output, limit(timeout_s))
        except _TooLongError as held:
            why = f"did not end within {limit(timeout_s):g} s{held}"
            raise process.ChildError(process.story(list(argv), why, *map(_text, output.values()))) from None
        finally:
            for fd in mine:
                os.close(fd)
        out, err = _text(output[out_read]), _text(output[err_read])
        if check and status != 0:
            raise process.ChildError(process.story(list(argv), f"ended with {status}", out, err))
        return subprocess.CompletedProcess(list(argv), status, out, err)


def wanted(argv: Sequence[str | os.PathLike[str]]) -> list[str] | None:
    """The command line in the form for a server, if it is one of ours."""
    words = [os.fsdecode(word) for word in argv]
    if os.environ.get(_EXECUTE):
        return None
    if words[:2] == [sys.executable, "-m"] and words[2:3] == ["unionfs"]:
        return words[2:]
    return words if words[:1] == ["layers"] else None


def _await(connection: socket.socket, output: dict[int, bytearray], within_s: float) -> int:
    """Read the output and wait for the end. Raises: _TooLongError."""
    deadline = time.monotonic() + within_s
    told = b""
    with selectors.DefaultSelector() as selector:
        for fd in (connection.fileno(), *output):
            selector.register(fd, selectors.EVENT_READ)
        while selector.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                if b"\n" in told and told.count(b"\n") < 2:
                    with suppress(ProcessLookupError):
                        os.killpg(int(told.split()[0]), signal.SIGKILL)
                    raise _TooLongError
                raise _TooLongError(", and a descendant outside its process group keeps its output open")
            for key, _ in selector.select(left):
                found = os.read(key.fd, 65536)
                if not found:
                    selector.unregister(key.fd)
                elif key.fd in output:
                    output[key.fd] += found
                else:
                    told += found
    words = told.split()
    if len(words) != 2:
        raise process.ChildError("the command server has ended")
    return int(words[1])


def _text(found: bytearray) -> str:
    return io.TextIOWrapper(io.BytesIO(found), encoding="utf-8", errors="surrogateescape").read()


def _umask() -> int:
    now = os.umask(0o022)
    os.umask(now)
    return now


def _identity() -> tuple[object, ...]:
    """The properties that children of this process inherit, but those of a server do not."""
    spaces = tuple(os.stat(f"/proc/self/ns/{kind}").st_ino for kind in _NAMESPACES)
    return (os.getpid(), os.getresuid(), os.getresgid(), Path("/proc/self/cgroup").read_bytes(), spaces)


# -- the server --------------------------------------------------------------------------------------------------------


def main() -> None:
    """Serve the socket whose number is the argument, until the tests close their end."""
    from unionfs.launcher import own_executable

    own_executable.protect_if_writable()  # as each command that enters a container would do
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    _preload()
    running: dict[int, tuple[int, socket.socket]] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd in running:
                    selector.unregister(key.fd)
                    pid, connection = running.pop(key.fd)
                    os.close(key.fd)
                    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    with connection, suppress(OSError):
                        connection.sendall(b"%d\n" % status)
                    continue
                data, fds, _, _ = socket.recv_fds(control, 1, 4)
                if not data:
                    return
                connection = socket.socket(fileno=fds[0])
                pid = os.fork()
                if pid == 0:
                    _run(connection, fds[1:])
                for fd in fds[1:]:
                    os.close(fd)
                with suppress(OSError):
                    connection.sendall(b"%d\n" % pid)
                pidfd = os.pidfd_open(pid)
                running[pidfd] = (pid, connection)
                selector.register(pidfd, selectors.EVENT_READ)


def _preload() -> None:
    import gc
    import pkgutil

    from unionfs import compiled

    gc.disable()
    compiled.use_compiled()
    for package in _PRELOADED:
        module = importlib.import_module(package)
        for found in pkgutil.walk_packages(module.__path__, f"{package}."):
            if not found.name.startswith(_NOT_PRELOADED) and not found.name.endswith("__main__"):
                with suppress(ImportError):
                    importlib.import_module(found.name)
    gc.freeze()
    gc.enable()


def _run(connection: socket.socket, fds: Sequence[int]) -> NoReturn:
    """In the child: run the command."""
    status = 1
    try:
        os.setsid()
        with connection.makefile("rb") as told:
            request: dict[str, Any] = json.loads(told.read())
        for number, fd in enumerate(fds):
            os.dup2(fd, number)
        connection.detach()
        os.closerange(3, 1024)
        os.umask(request["umask"])
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        name, *arguments = request["argv"]
        module = importlib.import_module(_PROGRAMS[name])
        script = os.path.join(os.path.dirname(sys.executable), name)
        sys.argv = [os.fspath(module.__file__ or ""), *arguments]
        sys.orig_argv = [sys.executable, *(["-m", name] if name == "unionfs" else [script]), *arguments]
        _show(sys.orig_argv)
        status = _ended(module.main)
    except BaseException:  # noqa: BLE001 - as Python ends a program
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)


def _ended(body: Any) -> int:
    try:
        return int(body() or 0)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1


def _show(argv: Sequence[str]) -> None:
    """Change the command line that /proc shows: tests look for commands there."""
    import ctypes

    fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    start, end = int(fields[48 - 3]), int(fields[49 - 3])  # arg_start, arg_end: proc_pid_stat(5)
    raw = b"\0".join(map(os.fsencode, argv))[: end - start - 1]
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, raw, len(raw))


if __name__ == "__main__":
    main()
