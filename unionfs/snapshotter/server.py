"""Run the snapshotter: lock the root, listen at the socket, notify systemd, serve calls until a signal.

At SIGTERM or SIGINT (unless ignored at the start) it refuses new calls, finishes those that are running, and removes
its socket.
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
"""Calls at a time. Most wait for the disk (removing, measuring), not for a processor; containerd unpacks few layers at
once, but removes many."""

_GRACE_S: Final = 30.0
"""Seconds for running calls to finish at the end: removing a large image takes seconds. systemd kills after 90 s."""

_ADDRESS_MAX: Final = 107  # bytes of a socket's path: unix(7), sun_path
_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def serve(address: str, root: str, mount_program: str, *, environment: Mapping[str, str] = os.environ) -> None:
    """Serve the snapshots below `root` at the socket `address` until SIGTERM or SIGINT.

    Precondition: this is the only thread. Raises: SnapshotError, OSError, sqlite3.Error if it cannot start.
    """
    path = os.path.abspath(address.removeprefix("unix://"))
    _prepare_socket_path(path)
    stop_signals = {number for number in _STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals)  # before there are threads that could receive them
    store = SnapshotStore(root, mount_program)
    try:
        server = grpc.server(ThreadPoolExecutor(_THREADS, "call"), options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers((handler_of(store),))
        _listen(server, path)
        ino = os.lstat(path).st_ino
        server.start()
        log.info("serving %s at %s", store.root, path)
        _notify_systemd("READY=1", environment)
        number = signal.sigwait(stop_signals)
        log.info("leaving: %s", signal.Signals(number).name)
        _notify_systemd("STOPPING=1", environment)
        server.stop(_GRACE_S).wait()
        with suppress(FileNotFoundError):
            if os.lstat(path).st_ino == ino:  # else another snapshotter has replaced the socket
                os.unlink(path)
    finally:
        store.close()


def _prepare_socket_path(path: str) -> None:
    """Make the socket's directory, and remove a stale socket, at which no process listens."""
    if len(os.fsencode(path)) > _ADDRESS_MAX:
        raise SnapshotError(
            f"the path {path} is longer than {_ADDRESS_MAX} bytes, the limit for sockets: choose a shorter one"
        )
    os.makedirs(os.path.dirname(path), 0o711, exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise SnapshotError(f"{path} exists and is not a socket: remove it, or choose another path") from None
            os.unlink(path)
            return
    raise SnapshotError(f"another process listens at {path} already")


def _listen(server: grpc.Server, path: str) -> None:
    """Make the socket with access for this user only, since clients can read all files of images."""
    umask = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError as error:
        raise SnapshotError(f"listening at {path} failed: {error}") from error
    finally:
        os.umask(umask)


def _notify_systemd(state: str, environment: Mapping[str, str]) -> None:
    """Send `state` to the service manager if NOTIFY_SOCKET names it (sd_notify(3))."""
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
        log.warning("notifying systemd of %s failed: %s", state, error)
