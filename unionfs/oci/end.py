"""End containers: send signals to their processes, and remove all their parts."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from typing import Final

from unionfs.oci import hooks, state
from unionfs.oci.cgroups import Cgroup
from unionfs.oci.config import Config
from unionfs.oci.errors import NoContainerError, OciError
from unionfs.oci.report import Report
from unionfs.oci.state import Container, Saved

_ENDING_S: Final = 10
_NOT_RUNNING: Final = "container not running"  # engines look for these words


def signal_number(text: str) -> int:
    """The number of a signal: 9, KILL or SIGKILL; for real-time ones also RTMIN+3. Raises: OciError."""
    name = text.upper().removeprefix("SIG")
    if text.isascii() and text.isdecimal() and int(text) in signal.valid_signals():
        return int(text)
    base, plus, offset = name.partition("+")
    if f"SIG{base}" in signal.Signals.__members__ and not (plus and not offset.isdecimal()):
        return signal.Signals[f"SIG{base}"] + int(offset or 0)
    raise OciError(f"unknown signal {text!r}")


def kill(container: Container, number: int, *, all_processes: bool) -> None:
    """Send a signal to the container's first process, or to all its processes. Raises: OciError."""
    with container.locked():
        saved, config = container.load(), container.config()
        status = state.status_of(container, saved)
        if all_processes and "pid" not in config.namespaces:
            _signal_all(saved, number)
            return
        if status == "stopped":
            if all_processes:
                return
            raise OciError(_NOT_RUNNING)
        if not _signal(saved, number):
            raise OciError(_NOT_RUNNING)
        if number == signal.SIGKILL:
            _thaw(saved)  # else the processes of cgroup v1 would not end before they are resumed


def delete(container: Container, report: Report, *, force: bool) -> None:
    """Remove a container that has ended; with `force` also one that runs. Raises: OciError."""
    try:
        with container.locked():
            _delete(container, report, force=force)
    except NoContainerError:
        if not force:
            raise
        with contextlib.suppress(OciError):
            container.remove()  # a container without a state


def _delete(container: Container, report: Report, *, force: bool) -> None:
    try:
        saved, config = container.load(), container.config()
    except NoContainerError:
        raise
    except OciError:
        if not force:
            raise
        container.remove()
        return
    status = state.status_of(container, saved)
    if status in ("running", "creating") and not force:
        raise OciError(f"cannot delete container {container.identity} that is not stopped: {status}")
    if status != "stopped":
        _signal(saved, signal.SIGKILL)
        _thaw(saved)
        if not _wait_until_ended(saved.pid, saved.started_at):
            raise OciError(f"cannot delete container {container.identity}: its process {saved.pid} does not end")
    _destroy(container, saved, config, report)


def _destroy(container: Container, saved: Saved, config: Config, report: Report) -> None:
    cgroup = Cgroup(saved.cgroups)
    if "pid" not in config.namespaces or config.namespaces["pid"].path:
        _kill_the_rest(saved)
    cgroup.remove()
    _end_daemon(saved)
    container.remove()
    hooks.run_late("poststop", config.hooks["poststop"], state.as_json(saved, config, "stopped"), report)


def _kill_the_rest(saved: Saved) -> None:
    """Kill the remaining processes: in a shared pid namespace they do not end with the first one."""
    deadline = time.monotonic() + _ENDING_S
    while (pids := Cgroup(saved.cgroups).pids()) and time.monotonic() < deadline:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _end_daemon(saved: Saved) -> None:
    """Wait for the end of the daemon of the container's union, which ends with the last process of its mount
    namespace."""
    if saved.daemon and not _wait_until_ended(saved.daemon, saved.daemon_started_at):
        raise OciError(f"the daemon of the union {saved.rootfs}, process {saved.daemon}, does not end")


def _thaw(saved: Saved) -> None:
    cgroup = Cgroup(saved.cgroups)
    if cgroup.is_frozen():
        cgroup.freeze(False)


def _signal(saved: Saved, number: int) -> bool:
    """Send a signal to the container's first process. Return False if it has ended. Raises: OciError."""
    try:
        fd = os.pidfd_open(saved.pid)
    except OSError:
        return False
    try:
        if state.start_time(saved.pid) != saved.started_at:
            return False  # another process has its number by now
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return False
    except OSError as error:
        raise OciError.of(f"sending signal {number}", error) from error
    finally:
        os.close(fd)
    return True


def _signal_all(saved: Saved, number: int) -> None:
    for pid in Cgroup(saved.cgroups).pids():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _wait_until_ended(pid: int, started_at: int) -> bool:
    """Wait until a process has ended. Return whether it has."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return True
    try:
        if state.start_time(pid) != started_at:
            return True
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(_ENDING_S * 1000))
    finally:
        os.close(fd)
