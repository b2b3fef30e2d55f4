"""Prepare the container's own process for its command: terminal, ids, limits, capabilities; then execute it.

It runs in the container's namespaces and root. `take_terminal`, then `become`, then, when the command is to start,
`execute`. Until then the process keeps the capabilities that loading a seccomp filter needs.
"""

from __future__ import annotations

import array as _array  # noqa: F401 - socket.send_fds imports it when it is called, in the container's root
import contextlib
import json
import os
import resource
import socket
import stat
import struct
import sys
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple, NoReturn

from unionfs.launcher import capabilities, command, terminal, users
from unionfs.launcher.spec import SEARCH_PATH
from unionfs.oci.config import CAPABILITY_SETS, LIMITS, VERSION, Process
from unionfs.oci.errors import OciError
from unionfs.syscalls.libseccomp import Filter
from unionfs.syscalls.namespaces import (
    Capabilities,
    capget,
    capset,
    clear_ambient_set,
    join_new_session_keyring,
    keep_capabilities,
    limit_bounding_set,
    raise_ambient,
    set_command_line,
    set_io_priority,
    set_no_new_privileges,
    set_process_name,
)

_NAME: Final = "unionfs-oci"
_WINDOW: Final = struct.Struct("4H")  # struct winsize of ioctl_tty(2)


class SentConsole(NamedTuple):
    """A terminal's master side, sent to a socket as runc sends it: with the terminal's name as the data."""

    connection: socket.socket
    rows_and_columns: tuple[int, int] | None

    @property
    def size(self) -> bytes | None:
        return _WINDOW.pack(*self.rows_and_columns, 0, 0) if self.rows_and_columns else None

    def send(self, master: int) -> None:
        socket.send_fds(self.connection, [b"/dev/ptmx"], [master])
        self.connection.close()


class Notifier(NamedTuple):
    """The connection to the process that answers intercepted system calls, and the container's state for it."""

    connection: socket.socket
    metadata: str
    state: dict[str, Any]

    def send(self, listener: int) -> None:
        """Send the descriptor of the filter, in the form of config-linux.md, "The Container Process State"."""
        message: dict[str, Any] = {"ociVersion": VERSION, "fds": ["seccompFd"], "pid": os.getpid(), "state": self.state}
        if self.metadata:
            message["metadata"] = self.metadata
        socket.send_fds(self.connection, [json.dumps(message).encode()], [listener])
        self.connection.close()


class Privileges(NamedTuple):
    """Privileges and descriptors besides the process's configuration. Made before the root changes."""

    filter: Filter | None
    notifier: Notifier | None
    label: tuple[int, str] | None  # apparmor.open_label, by the process itself
    preserved: int  # descriptors from 3 on that the command gets
    new_keyring: bool

    def descriptors(self) -> list[int]:
        """Descriptors that are needed until the command is executed."""
        return [self.notifier.connection.fileno()] if self.notifier else []


def rows_and_columns(size: bytes) -> tuple[int, int]:
    """The first two members of a struct winsize."""
    rows, columns, _, _ = _WINDOW.unpack(size)
    return rows, columns


def connect(path: str, what: str) -> socket.socket:
    """Connect to a socket of the caller. Raises: OciError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(path)
    except OSError as error:
        raise OciError(f"connecting to the {what} {path}: {(error.strerror or str(error)).lower()}") from error
    return connection


def check_preserved(count: int) -> int:
    """The number of descriptors from 3 on that are passed: `count`, after those of socket activation. Raises:
    OciError."""
    listening = os.environ.get("LISTEN_FDS", "")
    if listening.isdecimal() and os.environ.get("LISTEN_PID") == str(os.getpid()):
        count += int(listening)
    for fd in range(3, 3 + count):
        try:
            os.fstat(fd)
        except OSError:
            raise OciError(f"descriptor {fd} is to be passed to the container, but is not open") from None
        os.set_inheritable(fd, True)
    return count


def forbid_imports() -> None:
    """Disable further imports of Python: in the container's root they would import files of the container."""
    sys.path.clear()
    sys.path_importer_cache.clear()


def hide_command_line() -> None:
    """Hide the host's command line and environment, which /proc shows. Preconditions: /proc is the host's."""
    set_process_name(_NAME)
    set_command_line(_NAME)


def close_others(kept: Iterable[int], preserved: int) -> None:
    """Close all descriptors but the standard ones, the `preserved` ones and `kept`: no directory of the host may be
    reached through /proc/self/fd (CVE-2024-21626). Preconditions: /proc is the host's.
    """
    wanted = {*range(3 + preserved), *kept}
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in wanted:
            with contextlib.suppress(OSError):  # the one of the listing itself is gone
                os.close(int(name))


def take_terminal(process: Process, console: terminal.MasterSide | None, *, is_console: bool) -> None:
    """Open a terminal and make it the controlling one, or give pipes to the user. Preconditions: this process leads a
    session.

    Raises: OciError.
    """
    try:
        if console:
            terminal.open_terminal(console, process.user.uid, is_console=is_console)
        else:
            command.chown_pipes(process.user.uid)
    except OSError as error:
        raise OciError.of("opening a terminal", error) from error


def become(process: Process, privileges: Privileges, warn: Callable[[str], None]) -> str:
    """Take the limits, ids and working directory, and find the program. Returns its path. Raises: OciError."""
    if privileges.new_keyring:
        join_new_session_keyring()
    if process.io_priority is not None:
        _attempt("setting the I/O priority", lambda: set_io_priority(process.io_priority or 0))
    wanted = process.capabilities or dict.fromkeys(CAPABILITY_SETS, ())
    _attempt("limiting capabilities", lambda: limit_bounding_set(_mask(wanted["bounding"], warn)))
    keep_capabilities()
    entered = _change_directory(process.cwd, last=False)
    _change_ids(process)
    os.umask(process.user.umask)
    if not entered:
        _change_directory(process.cwd, last=True)
    _check_directory()
    return _find_program(process)


def execute(process: Process, privileges: Privileges, program: str, warn: Callable[[str], None]) -> NoReturn:
    """Take the last limits and privileges, and execute the command. Raises: OciError."""
    permitted = capget().permitted
    if privileges.filter and not process.no_new_privileges:
        # It needs CAP_SYS_ADMIN, which a change of ids has made ineffective.
        capset(Capabilities(effective=permitted, permitted=permitted, inheritable=0))
        _load(privileges)
    _set_limits(process)
    _set_capabilities(process, permitted, warn)
    if process.no_new_privileges:
        set_no_new_privileges()
    if privileges.label:
        fd, profile = privileges.label
        _attempt(f"changing to the AppArmor profile {profile}", lambda: os.write(fd, f"exec {profile}".encode()))
        os.close(fd)
    environment = _environment(process, privileges.preserved)
    if privileges.filter and process.no_new_privileges:
        _load(privileges)
    try:
        os.execve(program, process.args, environment)
    except OSError as error:
        raise OciError(f"exec {program}: {(error.strerror or str(error)).lower()}") from None


def _load(privileges: Privileges) -> None:
    assert privileges.filter
    try:
        privileges.filter.load()
        if privileges.notifier:
            listener = privileges.filter.listener()
            privileges.notifier.send(listener)
            os.close(listener)
    except OSError as error:
        raise OciError.of("loading the seccomp filter", error) from error


def _change_ids(process: Process) -> None:
    user = process.user
    try:
        os.setgroups(user.groups)
    except OSError as error:
        if user.groups or not isinstance(error, PermissionError):
            why = "a user namespace with one group id has no others" if isinstance(error, PermissionError) else error
            raise OciError(f"setting the supplementary groups: {why}") from error
    _attempt(f"changing to the group {user.gid}", lambda: os.setresgid(user.gid, user.gid, user.gid))
    _attempt(f"changing to the user {user.uid}", lambda: os.setresuid(user.uid, user.uid, user.uid))


def _change_directory(path: str, *, last: bool) -> bool:
    try:
        os.chdir(path)
    except OSError as error:
        if last or not isinstance(error, PermissionError):
            why = (error.strerror or str(error)).lower()
            raise OciError(f"chdir to cwd ({json.dumps(path)}) set in config.json failed: {why}") from None
        return False
    return True


def _check_directory() -> None:
    """Refuse a working directory outside of the container's root, to which a magic link may have led."""
    try:
        inside = os.path.samefile(os.getcwd(), ".")
    except OSError:
        inside = False
    if not inside:
        raise OciError("current working directory is outside of container mount namespace root")


def _find_program(process: Process) -> str:
    """The path of the command, searched in PATH as a shell does. Raises: OciError in the words that engines know."""
    name = process.args[0]
    if "/" in name:
        if why := _why_not_executable(name):
            raise OciError(f"exec: {json.dumps(name)}: {why}")
        return name
    pairs = dict(pair.partition("=")[::2] for pair in process.env)
    refused = False
    for directory in pairs.get("PATH", SEARCH_PATH).split(":"):
        path = os.path.join(directory or ".", name)
        why = _why_not_executable(path) if name else "empty"
        if not why:
            return path
        refused = refused or why == _DENIED
    if refused:
        raise OciError(f"exec: {json.dumps(name)}: {_DENIED}")
    raise OciError(f"exec: {json.dumps(name)}: executable file not found in $PATH")


_DENIED: Final = "permission denied"


def _why_not_executable(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError as error:
        return f"stat {path}: {(error.strerror or str(error)).lower()}"
    if stat.S_ISDIR(status.st_mode):
        return "is a directory: permission denied"
    return "" if os.access(path, os.X_OK, effective_ids=True) else _DENIED


def _set_limits(process: Process) -> None:
    for limit in process.limits:
        try:
            resource.setrlimit(LIMITS[limit.name], (limit.soft, limit.hard))
        except (OSError, ValueError) as error:
            raise OciError(f"error setting rlimit type {LIMITS[limit.name]}: {error}") from None


def _set_capabilities(process: Process, permitted: int, warn: Callable[[str], None]) -> None:
    if process.capabilities is None:
        wanted = dict.fromkeys(CAPABILITY_SETS, 0)
    else:
        wanted = {name: _mask(names, lambda _: None) for name, names in process.capabilities.items()}
    missing = (wanted["permitted"] | wanted["effective"]) & ~permitted
    if missing:
        names = [name for name, number in capabilities.NUMBERS.items() if missing >> number & 1]
        warn(f"the runtime itself lacks capabilities that the container asks for: {', '.join(names).lower()}")
    left = Capabilities(
        effective=wanted["effective"] & wanted["permitted"] & permitted,
        permitted=wanted["permitted"] & permitted,
        inheritable=wanted["inheritable"] & permitted,
    )
    _attempt("unable to apply caps", lambda: capset(left))
    clear_ambient_set()
    for number in capabilities.NUMBERS.values():
        if wanted["ambient"] >> number & 1:
            with contextlib.suppress(OSError):  # not inheritable, or unknown to the kernel
                raise_ambient(number)


def _mask(names: Iterable[str], warn: Callable[[str], None]) -> int:
    known = [name.removeprefix("CAP_") for name in names]
    for name in known:
        if name not in capabilities.NUMBERS:
            warn(f"ignoring unknown or unavailable capabilities: CAP_{name}")
    return capabilities.mask(name for name in known if name in capabilities.NUMBERS)


def _environment(process: Process, preserved: int) -> dict[str, str]:
    for number, pair in enumerate(process.env):
        if "=" not in pair[1:]:
            raise OciError(f"process.env[{number}]: {pair!r} is not NAME=VALUE")
    found = dict(pair.partition("=")[::2] for pair in process.env)
    if not found.get("HOME"):
        found["HOME"] = users.look_up(str(process.user.uid)).home
    if "LISTEN_FDS" in os.environ and preserved:
        found |= {"LISTEN_FDS": os.environ["LISTEN_FDS"], "LISTEN_PID": str(os.getpid())}
    return found


def _attempt(what: str, action: Callable[[], object]) -> None:
    try:
        action()
    except OSError as error:
        raise OciError.of(what, error) from error
