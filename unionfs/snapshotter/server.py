"""The life of a snapshotter: take the root and the socket, say that it is ready, serve until told to leave.

Told by SIGTERM or SIGINT (unless that was ignored at the start) it takes no more calls, finishes those under way, and
removes its socket.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final

import grpc

from unionfs.snapshotter.service import handler_of
from unionfs.snapshotter.store import SnapshotStore
from unionfs.snapshotter.values import SnapshotError

log = logging.getLogger(__name__)

_THREADS: Final = 16
"""Calls at a time. They wait for the disk (removing, measuring), not for the processor; containerd unpacks few layers
at once, but removes many."""

_GRACE_S: Final = 30.0
"""For calls under way at the end: removing a large image takes seconds. systemd kills after 90 s."""

_ADDRESS_MAX: Final = 107  # bytes of a socket's path: unix(7), sun_path
_WISHES: Final = (signal.SIGTERM, signal.SIGINT)


def serve(address: str, root: str, mount_program: str, *, environment: Mapping[str, str] = os.environ) -> None:
    """Serve the snapshots below `root` at the socket `address` until a signal says to leave.

    Precondition: this is the only thread. Raises: SnapshotError, OSError, sqlite3.Error; then nothing is served.
    """
    path = os.path.abspath(address.removeprefix("unix://"))
    _take_place(path)
    wishes = {wish for wish in _WISHES if signal.getsignal(wish) != signal.SIG_IGN}
    signal.pthread_sigmask(signal.SIG_BLOCK, wishes)  # before there are threads that could take them
    store = SnapshotStore(root, mount_program)
    try:
        server = grpc.server(ThreadPoolExecutor(_THREADS, "call"), options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers((handler_of(store),))
        _listen(server, path)
        number = os.lstat(path).st_ino
        server.start()
        log.info("serving %s at %s", store.root, path)
        _tell_systemd("READY=1", environment)
        wish = signal.sigwait(wishes)
        log.info("leaving: %s", signal.Signals(wish).name)
        _tell_systemd("STOPPING=1", environment)
        server.stop(_GRACE_S).wait()
        with suppress(FileNotFoundError):
            if os.lstat(path).st_ino == number:  # nobody else has taken the place meanwhile
                os.unlink(path)
    finally:
        store.close()


def _take_place(path: str) -> None:
    """Make the socket's directory, and remove a socket at which nobody listens any more."""
    if len(os.fsencode(path)) > _ADDRESS_MAX:
        raise SnapshotError(f"the path {path} is longer than the {_ADDRESS_MAX} bytes that a socket may have")
    os.makedirs(os.path.dirname(path), 0o711, exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise SnapshotError(f"{path} is there already and is not a socket") from None
            os.unlink(path)
            return
    raise SnapshotError(f"something listens at {path} already")


def _listen(server: grpc.Server, path: str) -> None:
    """Make the socket, for nobody but us: who can call can have files of images mounted."""
    umask = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError as error:
        raise SnapshotError(f"listening at {path} failed: {error}") from error
    finally:
        os.umask(umask)


def _tell_systemd(state: str, environment: Mapping[str, str]) -> None:
    """What a service of Type=notify tells its manager (sd_notify(3)); nothing if there is none."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notifier:
            notifier.connect(address)
            notifier.sendall(state.encode())
    except OSError as error:
        log.warning("telling systemd %s failed: %s", state, error)
