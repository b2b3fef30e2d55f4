"""Create a container: make its namespaces, root and control groups, and a process that waits to be started."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import resource
import signal
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from unionfs.oci import apparmor, channel, child, hooks, init, namespaces, process, seccomp, state, sysctls, union_root
from unionfs.oci.cgroups import Cgroup
from unionfs.oci.channel import Channel
from unionfs.oci.config import LIMITS, Config, Process, load, parse
from unionfs.oci.errors import OciError
from unionfs.oci.fields import Field
from unionfs.oci.report import Report
from unionfs.oci.state import Container, Saved
from unionfs.oci.union_root import UnionRoot


class Options(NamedTuple):
    """The flags of the command line for a new container."""

    root: str  # of the state
    identity: str
    bundle: str
    console_socket: str = ""
    pid_file: str = ""
    pivot: bool = True
    new_keyring: bool = True
    preserve_fds: int = 0
    tolerant: bool | None = None  # whether missing permissions for control groups are ignored; None: only without root


def create(options: Options, report: Report, send_console: process.SentConsole | None = None) -> Container:
    """Create the container, as the command `create`. Raises: OciError; nothing is left then.

    A terminal's master side goes to `send_console`, or to the console socket.
    """
    bundle = os.path.abspath(options.bundle)
    document = load(os.path.join(bundle, "config.json"))
    config = parse(document)
    sysctls.check(config)
    rootfs = os.path.realpath(os.path.join(bundle, config.root))
    union = union_root.find(config, bundle)
    if union:
        make_mountpoint(rootfs)
    if not os.path.isdir(rootfs):
        raise OciError(f"root.path: {rootfs} is no directory: no such file or directory")
    if config.process and config.process.terminal and not (options.console_socket or send_console):
        raise OciError("cannot allocate tty if the runtime will detach without setting console socket")
    if options.console_socket and not (config.process and config.process.terminal):
        raise OciError("cannot use console socket if the container has no terminal")
    preserved = process.check_preserved(options.preserve_fds)
    container = Container(options.root, options.identity)
    container.make(document)
    creation = _Creation(options, container, config, bundle, rootfs, union, report, preserved)
    try:
        creation.run(send_console)
    except BaseException:
        creation.undo()
        raise
    return container


class _Creation:
    """One creation. `run`, and `undo` if that fails."""

    def __init__(
        self,
        options: Options,
        container: Container,
        config: Config,
        bundle: str,
        rootfs: str,
        union: UnionRoot | None,
        report: Report,
        preserved: int,
    ) -> None:
        self._options: Final = options
        self._container: Final = container
        self._config: Final = config
        self._report: Final = report
        self._preserved: Final = preserved
        self._union: Final = union
        self._tolerant: Final = state.is_rootless() if options.tolerant is None else options.tolerant
        self._cgroup = Cgroup({})  # set once, by run
        self._saved = Saved(
            identity=options.identity,
            bundle=bundle,
            rootfs=rootfs,
            created=dt.datetime.now(dt.UTC).isoformat().replace("+00:00", "Z"),
            pid=0,
            started_at=0,
            cgroups={},
            ready=False,
            tolerant=self._tolerant,
            daemon=0,
            daemon_started_at=0,
        )

    def run(self, send_console: process.SentConsole | None) -> None:
        config, saved, tolerant = self._config, self._saved, self._tolerant
        self._container.save(saved)
        joined = namespaces.open_given(config.namespaces)
        if options_socket := self._options.console_socket:
            connection = process.connect(options_socket, "console socket")
            send_console = process.SentConsole(connection, config.process.console_size if config.process else None)
        self._cgroup = Cgroup.create(config.cgroups_path, saved.identity, tolerant=tolerant, report=self._report)
        self._cgroup.apply(
            config.resources, tolerant=tolerant, report=self._report, with_devices=not state.in_user_namespace()
        )
        ours, theirs = channel.make()
        with self._container.listen() as listener:
            task = self._task(send_console, self._container_state(), listener)
            mount = self._mount_union(theirs)
            between = child.Intermediate(joined, config, mount, tuple(task.descriptors()), self._preserved)
            middle = child.fork(between, lambda: init.run(task, theirs), theirs, ours)
        if send_console:
            send_console.connection.close()
        try:
            self._attend(ours, middle)
        finally:
            ours.close()
            os.waitpid(middle, 0)
        self._saved = self._saved._replace(ready=True)
        self._container.save(self._saved)
        if self._options.pid_file:
            write_pid_file(self._options.pid_file, self._saved.pid)

    def _mount_union(self, theirs: Channel) -> Callable[[], None]:
        """The function that mounts the union of the root filesystem, in the process in between."""
        union, saved, log = self._union, self._saved, os.path.join(self._container.directory, "daemon.log")
        if union is None:
            return lambda: None
        return lambda: theirs.send("daemon", pid=union_root.mount(union, saved.rootfs, log))

    def undo(self) -> None:
        """Remove the parts made so far. Errors are ignored: the failure of the creation is reported."""
        if self._saved.pid and state.start_time(self._saved.pid) == self._saved.started_at:
            with contextlib.suppress(OSError):
                os.kill(self._saved.pid, signal.SIGKILL)
        with contextlib.suppress(OciError):
            self._cgroup.remove()
        with contextlib.suppress(OciError):
            self._container.remove()

    def _container_state(self) -> dict[str, Any]:
        return state.as_json(self._saved, self._config, "creating")

    def _task(self, console: process.SentConsole | None, shown: dict[str, Any], listener: Any) -> init.Task:
        config = self._config
        return init.Task(
            config=config,
            bundle=self._saved.bundle,
            rootfs=self._saved.rootfs,
            cgroups=self._cgroup.directories,
            bind_devices="user" in config.namespaces or state.in_user_namespace() or os.geteuid() != 0,
            pivot=self._options.pivot,
            privileges=make_privileges(
                config.process,
                config.seccomp,
                shown,
                preserved=self._preserved,
                new_keyring=self._options.new_keyring,
            ),
            console=console,
            listener=listener,
            state=shown,
        )

    def _attend(self, ours: Channel, middle: int) -> None:
        """Handle the messages of the container's process until it is ready."""
        for message in ours.messages(self._report):
            kind = message["kind"]
            if kind == "user":
                self._give_ids(middle)
                ours.send("go", pid=0)
            elif kind == "daemon":
                daemon = message["pid"]
                self._saved = self._saved._replace(daemon=daemon, daemon_started_at=state.start_time(daemon) or 0)
                self._container.save(self._saved)
            elif kind == "group":
                self._admit(middle)
                ours.send("go", pid=0)
            elif kind == "pid":
                self._note_pid(message["pid"])
            elif kind == "mounted":
                self._run_hooks()
                ours.send("go", pid=self._saved.pid)
            elif kind == "ready":
                return
        raise OciError("the container's process ended unexpectedly")

    def _give_ids(self, middle: int) -> None:
        """Give the process in between the ids of its user namespace and the clocks of its time namespace."""
        config = self._config
        if "user" in config.namespaces and not config.namespaces["user"].path:
            namespaces.write_ids(middle, config)
        if config.time_offsets:
            namespaces.write_time_offsets(middle, config)

    def _admit(self, middle: int) -> None:
        """Move the process in between into the control groups. The daemon of a union that it has started stays out."""
        config = self._config
        self._cgroup.add(middle, tolerant=self._tolerant)
        if config.process and config.process.oom_score_adj is not None:
            set_oom_score(middle, config.process.oom_score_adj, tolerant=self._tolerant, report=self._report)

    def _note_pid(self, pid: int) -> None:
        started = state.start_time(pid)
        self._saved = self._saved._replace(pid=pid, started_at=started or 0, cgroups=self._cgroup.directories)
        self._container.save(self._saved)

    def _run_hooks(self) -> None:
        shown = self._container_state()
        if self._config.process:
            raise_limits(self._saved.pid, self._config.process)
        for name in ("prestart", "createRuntime"):
            hooks.run(name, self._config.hooks[name], shown)


def make_mountpoint(rootfs: str) -> None:
    """Make the directory on which the union is mounted. Raises: OciError."""
    try:
        os.makedirs(rootfs, 0o755, exist_ok=True)
    except OSError as error:
        raise OciError.of("making the mountpoint of the union", error) from error


def make_privileges(
    wanted: Process | None, profile: Field, shown: dict[str, Any], *, preserved: int, new_keyring: bool
) -> process.Privileges:
    """The privileges and descriptors of a process besides its configuration. Raises: OciError."""
    notifier = None
    if profile and seccomp.notifies(profile):
        connection = process.connect(profile["listenerPath"].text(), "seccomp listener")
        notifier = process.Notifier(connection, profile["listenerMetadata"].text(""), shown)
    if wanted:
        apparmor.check(wanted.apparmor_profile)
    return process.Privileges(seccomp.build(profile), notifier, None, preserved, new_keyring)


def raise_limits(pid: int, wanted: Process) -> None:
    """Raise the hard limits of a process to those that it will set; only root may do so. Raises: OciError."""
    for limit in wanted.limits:
        number = LIMITS[limit.name]
        try:
            soft, hard = resource.prlimit(pid, number)
            if hard != resource.RLIM_INFINITY and (limit.hard == resource.RLIM_INFINITY or limit.hard > hard):
                resource.prlimit(pid, number, (soft, limit.hard))
        except OSError as error:
            why = f"{(error.strerror or str(error)).lower()} (RLIMIT_{limit.name.upper()})"
            raise OciError(f"error setting rlimit type {number}: {why}") from None


def set_oom_score(pid: int, score: int, *, tolerant: bool, report: Report) -> None:
    """Set oom_score_adj of a process (proc(5)). Raises: OciError."""
    try:
        with open(f"/proc/{pid}/oom_score_adj", "r+", encoding="ascii") as file:
            if int(file.read()) != score:
                file.write(str(score))
    except OSError as error:
        if not tolerant:
            raise OciError.of(f"setting oom_score_adj to {score}", error) from error
        report.debug(f"oom_score_adj stays: {error.strerror}")


def write_pid_file(path: str, pid: int) -> None:
    """Write the pid atomically. Raises: OciError."""
    directory, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(directory, f".{name}")
    try:
        with open(temporary, "w", encoding="ascii") as file:
            file.write(str(pid))
        os.rename(temporary, path)
    except OSError as error:
        raise OciError.of("writing the pid file", error) from error
