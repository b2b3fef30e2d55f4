"""Start a container: claim its record, mount its root filesystem, run its command, record how it ended.

Preparation and clean-up are in the launcher's hooks, which run in the monitor: another process, which is root of
the container's user namespace.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final

from unionfs.containers import accounts, etc, logs, rootfs, volume_mounts
from unionfs.containers.errors import ContainerError, NoSuchContainerError
from unionfs.containers.ids import my_ids
from unionfs.containers.launch_spec import bundle_of, is_supervised, make_spec, uplink_nameserver
from unionfs.containers.record import Container, process_started
from unionfs.containers.store import ContainerStore
from unionfs.containers.volumes import VolumeStore, anonymous_names
from unionfs.drivers.driver import by_name
from unionfs.launcher import idmap, userns
from unionfs.launcher.errors import NOT_FOUND, OWN_FAILURE, SEE_DOCTOR, LaunchError
from unionfs.launcher.monitor import Hooks, RootfsMounts
from unionfs.launcher.run import launch
from unionfs.mount_parent import client
from unionfs.trees.remove import remove_path

Warn = Callable[[str], None]
"""Prints a line that begins with `note: ` or `warning: `, possibly in another process."""


def run(
    container: Container,
    warn: Warn,
    ready: Callable[[], None] = lambda: None,
    *,
    attached: bool = True,
    interactive: bool | None = None,
    again: bool = False,
    debug: bool = False,
) -> int:
    """Run the container until its command ends. Returns the command's exit code, or 128 + the signal that killed it.

    `ready` is called when the command has been executed. Without `attached` the command's output is not shown.
    `interactive` is whether it reads standard input (None: as configured). If the command could not be executed the
    container is removed, unless it existed before (`again`).
    Raises: ContainerError, LaunchError; also when the command was not found or cannot be executed.
    """
    config, id_map = container.config, my_ids()
    if id_map and id_map.limited and not config.me:
        warn(_limits_note(id_map.limited, supervised=is_supervised(config, id_map)))
    process = config.process if interactive is None else config.process._replace(interactive=interactive)
    spec = make_spec(container, process, id_map)
    container = ContainerStore(container.root).claim(container)
    keep = _Log(container, warn).keep if config.logged else None
    around = _AroundCommand(container, warn, again=again, debug=debug)
    hooks = Hooks(around.prepare, around.started, around.finish)
    try:
        return launch(spec, hooks, ready, keep, attached=attached, forked=around.leave_parents)
    except BaseException as error:
        around.finish_without_monitor(id_map)
        if isinstance(error, LaunchError) and not error.hint:
            error.hint = _guess(container, error)
        raise


class _Log:
    """The container's log. Output that cannot be written (a full disk) is lost, with one warning."""

    def __init__(self, container: Container, warn: Warn) -> None:
        self._writer: Final = logs.Writer(container.log)
        self._path: Final = container.log
        self._warn: Final = warn
        self._warned = False  # set once, by keep

    def keep(self, stream: str, data: bytes) -> None:
        """Append output of `stream`."""
        try:
            self._writer.keep(stream, data)
        except OSError as error:
            if not self._warned:
                self._warned = True
                self._warn(f"warning: the log has gaps: {self._path}: {error.strerror}")


class _AroundCommand:
    """Preparation and clean-up. Runs in the monitor, so it does not change the caller's values."""

    def __init__(self, container: Container, warn: Warn, *, again: bool, debug: bool) -> None:
        self._container: Final = container
        self._store: Final = ContainerStore(container.root)
        self._warn: Final = warn
        self._again: Final = again
        self._debug: Final = debug
        self._parents: Final = _parents_for(container)  # made in the host's namespaces

    def leave_parents(self) -> None:
        """Close these connections in a process that needs no further daemon."""
        while self._parents:
            self._parents.pop().close()

    def prepare(self, rootfs_mounts: RootfsMounts) -> None:
        """Mount the union of the root filesystem, then those of the overlay volumes."""
        container = self._container
        os.umask(0o022)  # the container's directories do not depend on the user's umask
        rootfs.mount_rootfs(
            container, rootfs_mounts, self._warn_of_union, debug=self._debug, parents=self._parents,
            before=self._make_directories, meanwhile=self._write_files,
        )  # fmt: skip
        if container.config.me:
            accounts.write(container, container.config.me)
        try:
            volume_mounts.make_and_populate(container)
        except OSError as error:
            raise LaunchError.of("making the volumes of the image", error) from error
        rootfs.mount_overlay_volumes(
            container, rootfs_mounts, self._warn_of_union, debug=self._debug, parents=self._parents
        )
        self.leave_parents()

    def _make_directories(self) -> None:
        """Make the branches of the container that it does not have yet. Raises: LaunchError."""
        container = self._container
        try:
            remove_path(bundle_of(container))  # left by a killed monitor
            rootfs.make_mountpoint_lower(container)
            volume_mounts.make_overlays(container)
        except OSError as error:
            raise LaunchError.of("preparing the container", error) from error

    def _write_files(self) -> None:
        """Write the container's files, which its union does not show, and record that it is prepared. Raises:
        LaunchError."""
        container = self._container
        try:
            etc.write(container, uplink_nameserver(container.config))
        except OSError as error:
            raise LaunchError.of("preparing the container", error) from error
        self._store.update(
            container,
            monitor=os.getpid(),
            monitor_started=process_started(os.getpid()),
            began_ns=container.state.began_ns or _file_clock_ns(container.directory),
        )

    def started(self, pid: int) -> None:
        """Record process 1 of the container. A failure is only a warning: the command is running, and may have filled
        the disk."""
        try:
            self._store.started(self._container, pid, os.getpid())
        except (OSError, ContainerError) as error:
            why = "it could not be recorded as running, so other commands cannot enter it"
            because = error.strerror if isinstance(error, OSError) else error
            self._warn(f"warning: {self._container.name}: {why}: {because}")

    def finish(self, exit_code: int, has_started: bool) -> None:
        """Record how it ended, or remove the container. A failure is only a warning: the command's exit code is
        returned."""
        container = self._container
        try:
            self._store.note_outcome(container, exit_code)
            if container.config.remove or not (has_started or self._again):
                self._store.remove(container, self._remove_path, mine=True)
                self._remove_anonymous_volumes()
            elif has_started:
                self._store.exited(container, exit_code)
                volume_mounts.remove_overlays(container)
            else:
                self._store.unclaim(container, exit_code)
        except (OSError, ContainerError) as error:
            because = error.strerror if isinstance(error, OSError) else error
            self._warn(f"warning: {container.name}: cleaning up the container failed: {because}")

    def finish_without_monitor(self, id_map: idmap.NamespaceMap | None) -> None:
        """In the launching process, after a failure: the clean-up that a killed monitor has not done."""
        try:
            current = self._store.load(self._container.id).state
        except NoSuchContainerError:
            return
        has_started = current.status == "running"
        if current.status == "starting" and current.monitor is None:
            self.finish(OWN_FAILURE, has_started)
        elif current.status in ("starting", "running"):
            userns.call(id_map, lambda: self._finish_mapped(has_started))  # it may have files of its other ids

    def _finish_mapped(self, has_started: bool) -> bytes:
        self.finish(OWN_FAILURE, has_started)
        return b""

    def _remove_anonymous_volumes(self) -> None:
        """Remove the anonymous volumes, too, as docker does with --rm."""
        store = VolumeStore(self._container.root)
        for name in anonymous_names(self._container):
            store.remove(name, remove_path)

    def _remove_path(self, path: str) -> None:
        by_name(self._container.config.rootfs.driver).remove(path)
        remove_path(path)

    def _warn_of_union(self, text: str) -> None:
        self._warn(f"warning: {text}")


def _parents_for(container: Container) -> list[client.Parent]:
    """Connections to the parent of mounts, one for each daemon; fewer or none if it refuses (`client.refusal`)."""
    found: list[client.Parent] = []
    try:
        found.extend(client.connect() for _ in range(rootfs.count_of_daemons(container)))
    except client.NoParentError as why:
        client.refusal = why
    return found


def _file_clock_ns(directory: str) -> int:
    """The current time of the filesystem's clock, from which file times are taken."""
    os.utime(directory)
    return os.stat(directory).st_ctime_ns


def _limits_note(why: str, *, supervised: bool) -> str:
    means = (
        "other users and owners are emulated, and protect nothing"
        if supervised
        else "programs that change the user or the owner of files fail"
    )
    return f"note: the container has one user id only, since {why}: {means}\n  {SEE_DOCTOR}"


def _guess(container: Container, error: LaunchError) -> str:
    """A hint for a command that does not exist, and for an image file that cannot be read."""
    program, file = container.config.process.command[0], container.config.rootfs.file
    if file is not None and error.why == os.strerror(errno.EIO):
        from unionfs.containers import image_mount  # late: few containers need it

        return image_mount.damaged(file.path)
    if error.status == NOT_FOUND and os.path.isdir(program):
        return f"to add {program} to the root filesystem, name it as the last --lower"
    return ""
