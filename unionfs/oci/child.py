"""The process between a command of the runtime and the container's process: it makes the namespaces, forks, and ends.

A process that joins or makes a pid namespace is not in it, but its children are. So one process makes the namespaces,
forks the container's process and ends. The container's process is then a child of the subreaper above the runtime,
which waits for it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Final, NamedTuple, NoReturn

from unionfs.launcher.userns import reset_signals
from unionfs.oci import namespaces, process, root
from unionfs.oci.channel import Channel
from unionfs.oci.config import Config
from unionfs.oci.errors import OciError
from unionfs.syscalls.namespaces import CLONE_NEWCGROUP, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWTIME, CLONE_NEWUSER

Body = Callable[[], NoReturn]

_FIRST: Final = CLONE_NEWUSER | CLONE_NEWTIME
_LAST_ONES: Final = (CLONE_NEWCGROUP, CLONE_NEWPID)
_LAST: Final = CLONE_NEWCGROUP | CLONE_NEWPID


class Intermediate(NamedTuple):
    """The task of the process in between."""

    joined: namespaces.Joined
    config: Config | None  # of new namespaces; None: only those that are joined
    prepare: Callable[[], None]  # called in the container's user and mount namespaces, in the pid namespace of the host
    kept: tuple[int, ...]  # descriptors that `body` needs
    preserved: int  # number of descriptors from 3 on that the command gets


def fork(intermediate: Intermediate, body: Body, channel: Channel, ours: Channel) -> int:
    """Fork the process in between, whose child runs `body`. Returns its pid. `ours` is the caller's end."""
    sys.stdout.flush()
    sys.stderr.flush()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    pid = os.fork()
    if pid == 0:
        ours.close()
        _run(intermediate, body, channel)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    channel.close()
    return pid


def _run(intermediate: Intermediate, body: Body, channel: Channel) -> NoReturn:
    try:
        reset_signals()
        process.hide_command_line()
        process.close_others(
            (channel.fileno(), *intermediate.joined.fds.values(), *intermediate.kept), preserved=intermediate.preserved
        )
        _make_namespaces(intermediate, channel)
        pid = os.fork()
        if pid == 0:
            body()
        channel.send("pid", pid=pid)
        os._exit(0)
    except OciError as error:
        channel.send("error", message=str(error))
    except OSError as error:
        channel.send("error", message=str(OciError.of("making the container's namespaces", error)))
    except Exception as error:  # noqa: BLE001 - no process above this one would report it
        channel.send("error", message=f"internal error: {error!r}")
    finally:
        os._exit(1)


def _make_namespaces(intermediate: Intermediate, channel: Channel) -> None:
    """Make the namespaces: first those that ids depend on, last those that depend on this process's control groups and
    children."""
    if "mount" in intermediate.joined.fds:
        process.forbid_imports()
    intermediate.joined.enter()
    config = intermediate.config
    wanted = namespaces.flags_of_new(config) if config else 0
    namespaces.make(wanted & _FIRST)
    channel.send("user")
    channel.wait_for_go()  # with ids
    if wanted & CLONE_NEWUSER:
        namespaces.become_root()
    namespaces.make(wanted & ~_FIRST & ~_LAST)
    if config and wanted & CLONE_NEWNS:
        root.separate_mounts(config)
    intermediate.prepare()
    channel.send("group")
    channel.wait_for_go()  # after this process is in the control groups: they are the root of a new cgroup namespace
    for kind in _LAST_ONES:
        namespaces.make(wanted & kind)
