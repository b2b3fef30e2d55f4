"""The container's process before it executes its command: it makes the root, waits to be started, and executes the
command.

It is process 1 if the container has a pid namespace of its own. It runs in the container but has the host's interpreter
in memory, so it is not dumpable.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from typing import Any, Final, NamedTuple, NoReturn

from unionfs.launcher.steps import Loopback
from unionfs.launcher.userns import reset_signals
from unionfs.oci import apparmor, hooks, process, sysctls
from unionfs.oci.channel import Channel
from unionfs.oci.config import Config
from unionfs.oci.errors import OciError
from unionfs.oci.root import Root
from unionfs.syscalls.namespaces import (
    set_dumpable,
    set_personality,
    setdomainname,
    sethostname,
)

_FAILED: Final = 1


class Task(NamedTuple):
    """The input of the container's process, made by the command that creates the container."""

    config: Config
    bundle: str
    rootfs: str
    cgroups: dict[str, str]
    bind_devices: bool
    pivot: bool
    privileges: process.Privileges
    console: process.SentConsole | None
    listener: socket.socket  # the socket to which the command `start` connects
    state: dict[str, Any]  # in the form for hooks, without the pid

    def descriptors(self) -> list[int]:
        """Descriptors that the task needs."""
        found = [self.listener.fileno(), *self.privileges.descriptors()]
        return [*found, self.console.connection.fileno()] if self.console else found


def run(task: Task, channel: Channel) -> NoReturn:
    """Become the container's command. Failures are sent through the channel, or to the command that starts us."""
    try:
        _prepare_and_run(task, channel)
    except OciError as error:
        channel.send("error", message=str(error))
    except OSError as error:
        channel.send("error", message=str(OciError.of("preparing the container", error)))
    except Exception as error:  # noqa: BLE001 - no process above this one would report it
        channel.send("error", message=f"internal error: {error!r}")
    finally:
        os._exit(_FAILED)


def _prepare_and_run(task: Task, channel: Channel) -> NoReturn:
    config, privileges = task.config, task.privileges
    process.forbid_imports()
    set_dumpable(False)  # no process in the container may trace this one
    os.setsid()
    os.umask(0o022)
    if config.process:
        privileges = privileges._replace(label=apparmor.open_label(config.process.apparmor_profile))
    root = Root(config, task.bundle, task.rootfs, task.cgroups, bind_devices=task.bind_devices)
    root.make()
    channel.send("mounted")
    state = {**task.state, "pid": channel.wait_for_go()["pid"]}
    hooks.run("createContainer", config.hooks["createContainer"], state)
    if "network" in config.namespaces and not config.namespaces["network"].path:
        Loopback().execute()
    _set_names(config)
    sysctls.apply(config.sysctls)
    root.enter(pivot=task.pivot)
    if config.process is None:
        raise OciError("process: is missing, so that the container could not be started")
    process.take_terminal(config.process, task.console, is_console=True)
    if config.personality:
        set_personality(config.personality == "LINUX32")

    def warn(message: str) -> None:
        channel.send("warning", message=message)

    program = process.become(config.process, privileges, warn)
    channel.send("ready")
    channel.close()
    _wait_and_execute(task._replace(privileges=privileges), program, {**state, "status": "created"})


def _set_names(config: Config) -> None:
    if config.hostname:
        sethostname(config.hostname)
    if config.domainname:
        setdomainname(config.domainname)


def _wait_and_execute(task: Task, program: str, state: dict[str, Any]) -> NoReturn:
    """Wait for the command `start`. A failure is sent to it; exec(2) closes the connection, which means success."""
    assert task.config.process
    while True:
        connection, _ = task.listener.accept()
        if connection.recv(1):
            break
        connection.close()  # the command ended before it sent a byte
    try:
        hooks.run("startContainer", task.config.hooks["startContainer"], state)
        reset_signals()
        process.execute(task.config.process, task.privileges, program, lambda _: None)
    except Exception as error:  # noqa: BLE001 - nobody else would report it
        told = str(error) if isinstance(error, OciError) else f"internal error: {error!r}"
        with contextlib.suppress(OSError):
            connection.send(json.dumps(told).encode())
        os._exit(_FAILED)
