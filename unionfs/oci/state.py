"""The state of containers between the commands: a directory for each, below the runtime's root directory.

    ROOT/ID/state.json     the state of the container (`Saved`)
    ROOT/ID/config.json    its configuration, as it was when the container was created
    ROOT/ID/start          the socket at which its process waits to be started; gone once it was

ROOT is its owner's alone. A command that changes a container holds a lock on its directory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import socket
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from unionfs.oci.config import VERSION, Config, load, parse
from unionfs.oci.errors import NoContainerError, OciError
from unionfs.trees.remove import remove_path

_ID: Final = re.compile(r"[A-Za-z0-9_+.-]{1,1024}")
_STATE: Final = "state.json"
_CONFIG: Final = "config.json"
_SOCKET: Final = "start"


class Saved(NamedTuple):
    """The state of a container besides its configuration. Immutable; written as JSON."""

    identity: str
    bundle: str  # absolute
    rootfs: str  # absolute
    created: str  # RFC 3339
    pid: int  # of its first process
    started_at: int  # when that process was started, in clock ticks since the boot (proc_pid_stat(5), field 22)
    cgroups: dict[str, str]  # cgroups.Cgroup.directories
    ready: bool  # its creation is complete
    tolerant: bool  # it may lack control groups
    daemon: int  # pid of the daemon of the union that is its root; 0: none
    daemon_started_at: int  # as started_at


class Container:
    """A container of the runtime, found by its id."""

    def __init__(self, root: str, identity: str) -> None:
        """Raises: OciError for an invalid id."""
        if not _ID.fullmatch(identity) or identity in (".", ".."):
            raise OciError(f"invalid id format: {identity!r}")
        self.identity: Final = identity
        self.directory: Final = os.path.join(os.path.abspath(root), identity)

    def make(self, document: Any) -> None:
        """Make the directory, with a copy of config.json. Raises: OciError when the id is in use."""
        try:
            os.makedirs(os.path.dirname(self.directory), 0o700, exist_ok=True)
            os.mkdir(self.directory, 0o711)
        except FileExistsError:
            raise OciError(f"container with id exists: {self.identity}") from None
        except OSError as error:
            raise OciError.of("creating the state directory", error) from error
        self._write(_CONFIG, document)

    def remove(self) -> None:
        """Remove the directory. Raises: OciError."""
        try:
            remove_path(self.directory)
        except OSError as error:
            raise OciError.of("removing the state directory", error) from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock. Raises: NoContainerError."""
        try:
            fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise NoContainerError from None
        except OSError as error:
            raise OciError.of("opening the state directory", error) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if not os.fstat(fd).st_nlink:
                raise NoContainerError
            yield
        finally:
            os.close(fd)

    def save(self, saved: Saved) -> None:
        self._write(_STATE, saved._asdict())

    def load(self) -> Saved:
        """Raises: NoContainerError, OciError."""
        try:
            with open(os.path.join(self.directory, _STATE), "rb") as file:
                return Saved(**json.load(file))
        except (FileNotFoundError, NotADirectoryError):
            raise NoContainerError from None
        except OSError as error:
            raise OciError.of("reading the state", error) from error
        except (ValueError, TypeError) as error:
            raise OciError(f"the state of {self.identity} is damaged: {error}; delete --force removes it") from None

    def config(self) -> Config:
        """The configuration. Raises: OciError."""
        return parse(load(os.path.join(self.directory, _CONFIG)))

    def listen(self) -> socket.socket:
        """Listen for the command `start`. Raises: OSError."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with self._short_path() as path:
            listener.bind(path)
        listener.listen(4)
        return listener

    def connect(self) -> socket.socket | None:
        """Connect to the process that waits to be started; None if it does not wait. Raises: OSError."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with self._short_path() as path:
                connection.connect(path)
        except OSError as error:
            connection.close()
            if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
                return None
            raise
        return connection

    def is_waiting(self) -> bool:
        """Whether the container has not been started yet."""
        return os.path.lexists(os.path.join(self.directory, _SOCKET))

    def note_started(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self.directory, _SOCKET))

    @contextlib.contextmanager
    def _short_path(self) -> Iterator[str]:
        """The socket's path may be longer than unix(7) allows."""
        dir_fd = os.open(self.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield f"/proc/self/fd/{dir_fd}/{_SOCKET}"
        finally:
            os.close(dir_fd)

    def _write(self, name: str, value: Any) -> None:
        path = os.path.join(self.directory, name)
        try:
            with open(f"{path}.new", "w", encoding="utf-8", errors="surrogateescape") as file:
                json.dump(value, file)
            os.rename(f"{path}.new", path)
        except OSError as error:
            raise OciError.of("writing the state", error) from error


def default_root() -> str:
    """The default directory of the state: below /run for root of the machine, else below $XDG_RUNTIME_DIR."""
    runtime_directory = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime_directory and is_rootless():
        return os.path.join(runtime_directory, "unionfs-oci")
    return "/run/unionfs-oci"


def is_rootless() -> bool:
    """Whether we are not root, or root of a user namespace only."""
    return os.geteuid() != 0 or in_user_namespace()


def in_user_namespace() -> bool:
    """Whether our user namespace is not that of the machine, which maps all ids to themselves (user_namespaces(7))."""
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            return file.read().split() != ["0", "0", "4294967295"]
    except OSError:
        return False


def list_all(root: str) -> list[Container]:
    """All containers below `root`."""
    try:
        names = sorted(os.listdir(root))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise OciError.of("listing the state directory", error) from error
    return [Container(root, name) for name in names if _ID.fullmatch(name)]


def start_time(pid: int) -> int | None:
    """When the process was started, in clock ticks since the boot; None if it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[22 - 3])


def status_of(container: Container, saved: Saved) -> str:
    """creating, created, running or stopped. Only the control group has whether it is paused (`show.status`)."""
    if not saved.pid or start_time(saved.pid) != saved.started_at:
        return "creating" if not saved.ready and not saved.pid else "stopped"
    if not saved.ready:
        return "creating"
    return "created" if container.is_waiting() else "running"


def as_json(saved: Saved, config: Config, status: str) -> dict[str, Any]:
    """The state in the form of the specification: for hooks, and, with more fields, for the command `state`."""
    return {
        "ociVersion": VERSION,
        "id": saved.identity,
        "status": status,
        **({"pid": saved.pid} if saved.pid and status != "stopped" else {}),
        "bundle": saved.bundle,
        **({"annotations": config.annotations} if config.annotations else {}),
    }
