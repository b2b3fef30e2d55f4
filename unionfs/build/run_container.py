"""One RUN: its command in a container on a union of the layers so far, whose upper becomes the new layer.

    DIRECTORY/containers/ID/   a container of `containers`, but in no store: no verb lists or finds it
    DIRECTORY/binds/N          the sources of --mount flags, bound there so that no link leads out of a stage or context
    DIRECTORY/unions/N         unions of stages and of the context; writes to them are discarded
    DIRECTORY/secrets/         a filesystem in memory
    DIRECTORY/diff             afterwards: the upper
    DIRECTORY/mountpoints      afterwards: paths that had to be made only to mount on them

Only the last two stay. The work is done in the monitor, which has the ids of the container.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from layers.pack import Epoch
from layers.safe_open import directories
from unionfs.build.mount_flags import BIND, CACHE, SECRET, TMPFS, MountFlag
from unionfs.containers import etc, rootfs, volume_mounts
from unionfs.containers.config import ContainerConfig, Mounts, Network, RootFilesystem, Volume
from unionfs.containers.errors import ContainerError
from unionfs.containers.ids import my_ids
from unionfs.containers.launch_spec import make_spec, uplink_nameserver
from unionfs.containers.record import Container, Facts
from unionfs.core import hardlinks
from unionfs.drivers.names import FUSE
from unionfs.launcher import idmap
from unionfs.launcher.capture import OutputSink
from unionfs.launcher.errors import LaunchError
from unionfs.launcher.monitor import Hooks, RootfsMounts
from unionfs.launcher.resources import Limit
from unionfs.launcher.run import launch
from unionfs.launcher.spec import Process, Tmpfs
from unionfs.mount_parent import client
from unionfs.syscalls.mounts import MS_BIND, MS_REC, mount
from unionfs.trees.open_beneath import open_in_root
from unionfs.trees.remove import remove_path

DIFF: Final = "diff"
MOUNTPOINTS: Final = "mountpoints"
_SCRIPTS: Final = "/dev/pipes"  # the directory in which BuildKit shows a heredoc that begins with #!
_SECRET_MODE: Final = 0o400
_CACHE_MODE: Final = 0o755


class RunMount(NamedTuple):
    """A --mount flag with its resolved source."""

    flag: MountFlag
    target: str  # absolute
    lowers: tuple[str, ...] = ()  # of a bind: host paths, the topmost first
    hidden: tuple[bytes, ...] = ()  # of a bind: paths that are excluded from a context
    directory: str = ""  # of a cache: a host path
    data: bytes | None = None  # of a secret; None: there is none, and none is required


class Run(NamedTuple):
    """A command to run, with its root filesystem, mounts and settings."""

    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    user: str
    workdir: str
    lowers: tuple[str, ...]  # host paths, the topmost first
    network: Network
    mounts: tuple[RunMount, ...] = ()
    script: tuple[str, str] | None = None  # name and text of a heredoc that is executed as a program
    limits: tuple[Limit, ...] = ()
    volumes: tuple[Volume, ...] = ()
    secrets: tuple[tuple[str, str], ...] = ()  # variables with the values of secrets; no record contains them


class RunOptions(NamedTuple):
    """The options of a run that do not concern the command."""

    directory: str  # new; on the filesystem of the store
    root: str  # of the store, which the container does not see
    warn: Callable[[str], None]
    ready: Callable[[], None]  # called when the command has been executed
    sink: OutputSink | None  # gets the output; None: it goes to our own descriptors
    epoch: Epoch | None  # later times of files become it
    keeps_failed: bool  # the upper of a command that failed is kept as well


def script_path(name: str) -> str:
    """The path in the container of a heredoc that is executed."""
    return f"{_SCRIPTS}/{name}"


def run(wanted: Run, options: RunOptions) -> int:
    """Run the command until it ends; its exit code. After 0 the new upper is at DIRECTORY/diff.

    Raises: ContainerError, LaunchError; also when the command was not found or cannot be executed.
    """
    id_map = my_ids()
    container = _container(wanted, options, id_map)
    try:
        _make_directories(container, options)
        at_run = _AtRun(wanted, options, container)
        spec = make_spec(container, container.config.process, id_map)
        hooks = Hooks(at_run.prepare, lambda pid: None, at_run.finish)
        code = launch(
            spec,
            hooks,
            options.ready,
            options.sink,
            attached=options.sink is None,
            forked=at_run.leave_parents,
        )
    except OSError as error:
        raise ContainerError.of("running a step", error) from error
    if code == 0 and not os.path.isdir(os.path.join(options.directory, DIFF)):
        raise ContainerError(
            "running a step", options.directory, "its changes could not be kept; see the messages above"
        )
    return code


def _container(wanted: Run, options: RunOptions, id_map: idmap.NamespaceMap | None) -> Container:
    process = Process(
        command=wanted.command,
        environment=(*wanted.environment, *wanted.secrets),
        user=wanted.user,
        workdir=wanted.workdir,
        no_new_privileges=False,  # as with docker, builds may use sudo and su
        limits=wanted.limits,
    )
    volumes = [*wanted.volumes, *_volumes(wanted, options)]
    memory = tuple(
        Tmpfs(one.target, f"size={one.flag.size}" if one.flag.size else "")
        for one in wanted.mounts
        if one.flag.type == TMPFS
    )
    config = ContainerConfig(
        process,
        RootFilesystem(wanted.lowers, durability="volatile"),  # a layer is synced as a whole
        Mounts(tuple(volumes), (), memory),
        wanted.network,
        kind="build",
        hostname="buildkitsandbox",  # docker's
    )
    facts = Facts(
        uid_map=id_map.uids if id_map else (),
        gid_map=id_map.gids if id_map else (),
        unmapped_as_root=id_map is not None,
        hidden=(os.path.realpath(options.root),),
        mountpoint_lower=True,
    )
    return Container(options.directory, os.urandom(8).hex(), "build", time.time(), config, facts)


def _volumes(wanted: Run, options: RunOptions) -> list[Volume]:
    """The bind mounts for the flags and the script: host paths that `prepare` makes."""
    found = []
    for number, one in enumerate(wanted.mounts):
        bound = os.path.join(options.directory, "binds", str(number))
        match one.flag.type:
            case "bind":
                found.append(Volume(bound, one.target, one.flag.read_only))
            case "cache":
                found.append(Volume(one.directory, one.target, one.flag.read_only))
            case "secret" if one.data is not None and one.target:
                found.append(Volume(_secret(options, number), one.target, read_only=True))
    if wanted.script is not None:
        path = os.path.join(options.directory, "script")
        found.append(Volume(path, script_path(wanted.script[0]), read_only=True))
    return found


def _secret(options: RunOptions, number: int) -> str:
    return os.path.join(options.directory, "secrets", str(number))


def _make_directories(container: Container, options: RunOptions) -> None:
    os.makedirs(container.directory, 0o700)
    for part in ("upper", "work", "merged"):
        os.mkdir(os.path.join(container.directory, part), 0o755)
    if container.config.rootfs.lowers:  # the root of the union shows the upper's mode, so it begins as what it covers
        mode = stat.S_IMODE(os.stat(container.config.rootfs.lowers[0]).st_mode)
        os.chmod(container.upper, mode)
    for part in ("binds", "unions", "secrets"):
        os.mkdir(os.path.join(options.directory, part), 0o700)


class _AtRun:
    """Preparation and clean-up. Runs in the monitor, so it does not change the caller's values."""

    def __init__(self, wanted: Run, options: RunOptions, container: Container) -> None:
        self._wanted: Final = wanted
        self._options: Final = options
        self._container: Final = container
        self._parents: Final[list[client.Parent]] = []
        try:
            unions = 1 + sum(one.flag.type == BIND for one in wanted.mounts)
            self._parents.extend(client.connect() for _ in range(unions))
        except client.NoParentError as why:
            client.refusal = why

    def leave_parents(self) -> None:
        """Close these connections in a process that needs no further daemon."""
        while self._parents:
            self._parents.pop().close()

    def prepare(self, rootfs_mounts: RootfsMounts) -> None:
        """Mount the root filesystem of the command. Raises: LaunchError."""
        container, directory = self._container, self._options.directory
        os.umask(0o022)
        try:
            if self._wanted.script is not None:
                _write(
                    os.path.join(directory, "script"), self._wanted.script[1].encode(errors="surrogateescape"), 0o755
                )
            for number, one in enumerate(self._wanted.mounts):
                if one.flag.type == BIND:
                    self._bind(number, one, rootfs_mounts)
            self._put_secrets()
            self._make_caches()
            etc.write(container, uplink_nameserver(container.config))
            rootfs.make_mountpoint_lower(container)
            volume_mounts.make_overlays(container)
        except OSError as error:
            raise LaunchError.of("preparing a step", error) from error
        rootfs.mount_rootfs(container, rootfs_mounts, self._warn, debug=False, parents=self._parents)
        rootfs.mount_overlay_volumes(container, rootfs_mounts, self._warn, debug=False, parents=self._parents)
        self.leave_parents()

    def _bind(self, number: int, one: RunMount, rootfs_mounts: RootfsMounts) -> None:
        """Mount the union of a stage or the context, and bind the part of it that is wanted."""
        union = os.path.join(self._options.directory, "unions", str(number))
        for part in ("upper", "work", "merged"):
            os.makedirs(os.path.join(union, part), 0o755)
        for path in one.hidden:
            _hide(os.fsencode(os.path.join(union, "upper")), path)
        rootfs.mount_union(
            self._container, rootfs_mounts, one.lowers, union, self._warn, debug=False, parents=self._parents
        )
        bound = os.path.join(self._options.directory, "binds", str(number))
        root_fd = os.open(os.path.join(union, "merged"), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd = open_in_root(root_fd, one.flag.source or ".")
        except OSError as error:
            why = f"{one.flag.source} is not in {one.flag.from_ or 'the context'}: {error.strerror}"
            raise LaunchError("mounting", one.target, why) from None
        finally:
            os.close(root_fd)
        try:
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                os.mkdir(bound, 0o755)
            else:
                _write(bound, b"", 0o644)
            mount(f"/proc/self/fd/{fd}", bound, None, MS_BIND | MS_REC)
        finally:
            os.close(fd)
        rootfs_mounts.add(bound)

    def _put_secrets(self) -> None:
        directory = os.path.join(self._options.directory, "secrets")
        given = [
            (number, one, one.data)
            for number, one in enumerate(self._wanted.mounts)
            if one.flag.type == SECRET and one.data is not None and one.target
        ]
        if not given:
            return
        mount("tmpfs", directory, "tmpfs", 0, "mode=700")  # never on the disk
        for number, one, data in given:
            path = _secret(self._options, number)
            _write(path, data, _SECRET_MODE if one.flag.mode is None else one.flag.mode)
            with contextlib.suppress(OSError):  # EINVAL: with one id all are the same user
                os.chown(path, one.flag.uid, one.flag.gid)

    def _make_caches(self) -> None:
        for one in self._wanted.mounts:
            if one.flag.type == CACHE and not os.path.isdir(one.directory):
                os.makedirs(one.directory, 0o755)
                with contextlib.suppress(OSError):
                    os.chown(one.directory, one.flag.uid, one.flag.gid)
                os.chmod(one.directory, _CACHE_MODE if one.flag.mode is None else one.flag.mode)

    def finish(self, exit_code: int, has_started: bool) -> None:
        """Keep the upper and remove all else. A failure is a warning: the caller sees that there is no upper."""
        container, directory = self._container, self._options.directory
        try:
            if has_started and (exit_code == 0 or self._options.keeps_failed):
                if not hardlinks.is_complete(container.work):
                    from unionfs.core import complete  # late: it imports most of the core

                    complete.complete_upper(
                        rootfs.union_options(container, container.branches, container.directory, FUSE)
                    )
                if self._options.epoch is not None:
                    _set_times(container.upper, self._options.epoch)
                with contextlib.suppress(FileNotFoundError):
                    os.rename(rootfs.mountpoints_file(container), os.path.join(directory, MOUNTPOINTS))
                os.rename(container.upper, os.path.join(directory, DIFF))
            for name in os.listdir(directory):
                if name not in (DIFF, MOUNTPOINTS):
                    remove_path(os.path.join(directory, name))
            if not os.listdir(directory):
                os.rmdir(directory)
        except OSError as error:
            self._options.warn(f"warning: keeping the changes of a step failed: {error.filename}: {error.strerror}")

    def _warn(self, text: str) -> None:
        self._options.warn(f"warning: {text}")


def _write(path: str, data: bytes, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(fd, "wb") as file:
        os.fchmod(fd, mode)
        file.write(data)


def _hide(upper: bytes, path: bytes) -> None:
    """Make a whiteout in an upper."""
    parent, _, name = path.rpartition(b"/")
    os.makedirs(os.path.join(upper, parent), 0o755, exist_ok=True)
    os.close(os.open(os.path.join(upper, parent, b".wh." + name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def _set_times(upper: str, epoch: Epoch) -> None:
    """Set the times in the upper to those of its layer, so that both are equal."""
    with directories(upper) as tree:
        todo: list[tuple[bytes, ...]] = [()]
        done = []
        while todo:
            path = todo.pop()
            done.append(path)
            with os.scandir(tree.fd(path)) as entries:
                found = [(os.fsencode(entry.name), entry.stat(follow_symlinks=False)) for entry in entries]
            for name, st in found:
                if stat.S_ISDIR(st.st_mode):
                    todo.append((*path, name))
                elif (time_ns := epoch.of(st.st_mtime_ns)) != st.st_mtime_ns:
                    os.utime(name, ns=(time_ns, time_ns), dir_fd=tree.fd(path), follow_symlinks=False)
        for path in reversed(done):
            fd = tree.fd(path)
            time_ns = epoch.of(os.fstat(fd).st_mtime_ns)
            os.utime(fd, ns=(time_ns, time_ns))
