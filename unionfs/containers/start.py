"""Run a command on a union: the container's record, the union's daemon and the launcher, brought together.

Shared by the verbs that start containers. Knows all three; does not know command lines. What is asked for is a `Job`;
what the launcher is told is the Spec made of it. Everything on the container's side happens in the launcher's hooks,
which run in another process, as root of the container's user namespace.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Callable, Iterator
from typing import Final, TypedDict

from unionfs.cli.errors import NOT_FOUND, OWN_FAILURE, CommandError, failed
from unionfs.containers import logs
from unionfs.containers.errors import ContainerError
from unionfs.containers.job import Job, from_record, to_record
from unionfs.containers.logs import Writer
from unionfs.containers.record import Container, process_started
from unionfs.containers.rootfs import (
    MOUNTPOINTS,
    VOLUMES,
    binds_of_etc,
    binds_of_volumes,
    has_ground,
    lay_ground,
    make_aside,
    make_volumes,
    volumes_aside,
    write_etc,
)
from unionfs.containers.store import ContainerStore
from unionfs.containers.volumes import VolumeStore, anonymous_names
from unionfs.core.options import OptionError, Options, check_directory
from unionfs.core.owners import IdTranslation, OwnerTranslation
from unionfs.drivers.driver import DEFAULT as FUSE
from unionfs.drivers.driver import DriverError, Tree, by_name, is_whole
from unionfs.launcher import idmap, mapped
from unionfs.launcher import plan as plans
from unionfs.launcher.errors import SEE_DOCTOR, LaunchError
from unionfs.launcher.monitor import Hooks, Provisions, take_away
from unionfs.launcher.run import launch
from unionfs.launcher.spec import SEARCH_PATH, Bind, Spec, Uplink
from unionfs.syscalls import seccomp
from unionfs.syscalls.mounts import MOUNT_ATTR_RDONLY, MS_BIND, MS_REC, MS_SLAVE, mount, set_attributes
from unionfs.syscalls.namespaces import CLONE_NEWNS, set_child_subreaper
from unionfs.trees.open_beneath import open_in_root
from unionfs.trees.remove import remove_path

LOG: Final = "daemon.log"
"""In the container's directory: what the union's daemon had to say."""

BUNDLE: Final = "bundle"
"""In the container's directory: what an OCI runtime is given, and its state."""

OWN_MOUNTS: Final = CLONE_NEWNS
"""The namespace that `mounted` needs."""

_RUNTIME_DIRECTORIES: Final = ("/run", "/tmp", "/var/tmp")


def my_ids() -> idmap.NamespaceMap | None:
    """The ids a container of this user has; None for root, who needs no user namespace."""
    return None if idmap.is_privileged() else idmap.find(os.geteuid(), os.getegid())


def describe(job: Job, store: ContainerStore) -> list[str]:
    """One line for each thing that `create` and `run` would do."""
    check_sources(job)
    directory = os.path.join(store.containers, "ID")
    container = Container(directory, "ID", job.name or "", job.lowers, job.command, created=0.0)
    return [
        f"make a container {job.name or 'with a new name'} in {directory}",
        *_describe_etc(job, container),
        *plans.make(make_spec(job, container, my_ids())).describe(preparation=_describe_unions(job, container)),
    ]


def create(job: Job, store: ContainerStore) -> Container:
    """Check what can be checked, and make the container's record and directories. Raises: CommandError."""
    check_sources(job)
    _check_driver(job, store)
    if job.uplink:
        uplink_program(job)
    id_map = my_ids()
    try:
        for volume in job.volumes:
            if volume.name:
                VolumeStore(store.root).create(volume.name)
        return store.create(
            job.lowers,
            job.command,
            job.name,
            kind=job.kind,
            uid_map=id_map.uids if id_map else (),
            gid_map=id_map.gids if id_map else (),
            unmapped_as_root=id_map is not None and job.driver != "overlay",
            skip_unreadable=id_map is not None and job.shows_host,
            hidden=(os.path.realpath(store.root),),
            whiteout=job.whiteout,
            has_ground=has_ground(job),
            image=job.image,
            image_digest=job.image_digest,
            image_type=job.image_type,
            job=to_record(job),
        )
    except ContainerError as error:
        raise CommandError(str(error), status=OWN_FAILURE) from error
    except OSError as error:
        raise CommandError.of("making the container", error, status=OWN_FAILURE) from error


def run(
    job: Job,
    store: ContainerStore,
    container: Container,
    ready: Callable[[], None] = lambda: None,
    *,
    attached: bool = True,
    again: bool = False,
) -> int:
    """Run the job in the container that `create` made of it; the command's exit code.

    A container whose command could not be executed is removed again, unless it existed before (`again`); and so is one
    that is not to be kept. Unless `attached`, nothing is shown of what the command prints.
    Raises: CommandError, also when the command was not found or cannot be executed.
    """
    id_map = my_ids()
    if id_map and id_map.limited:
        _tell_limits(id_map.limited, _is_supervised(job, id_map))
    try:
        container = store.claim(container)
        keep = Writer(os.path.join(container.directory, logs.NAME)).keep if job.logged else None
    except ContainerError as error:
        raise CommandError(str(error), hint=error.hint, status=OWN_FAILURE) from error
    turns = _Turns(job, store, container, again=again)
    hooks = Hooks(turns.prepare, turns.started, turns.finish)
    try:
        return launch(make_spec(job, container, id_map), hooks, ready, keep, attached=attached)
    except BaseException as error:
        turns.make_up_for(id_map)
        if isinstance(error, LaunchError):
            raise CommandError(str(error), hint=error.hint or _guess(job, error), status=error.status) from error
        raise


@contextlib.contextmanager
def mounted(job: Job, store: ContainerStore, container: Container) -> Iterator[int]:
    """The root directory of a container that does not run, its union mounted meanwhile.

    Preconditions: in a process of its own with the container's ids and OWN_MOUNTS. Raises: LaunchError.
    """
    set_child_subreaper()  # the daemon detaches from us, but is ours to wait for
    mount(None, "/", None, MS_REC | MS_SLAVE)
    life_read, life_write = os.pipe()
    provisions = Provisions(life_read)
    try:
        if container.has_ground and not os.path.isdir(container.ground):  # it was never run
            lay_ground(job, container)
        _Turns(job, store, container, again=True).mount(provisions, container.branches, container.directory)
        root_fd = os.open(container.merged, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            make_volumes(job, container)
            _mount_volumes(job, container, root_fd)
            yield root_fd
        finally:
            os.close(root_fd)
    finally:
        take_away(provisions, life_write)


def _mount_volumes(job: Job, container: Container, root_fd: int) -> None:
    """Those that are more than a view for as long as the container runs. Raises: LaunchError."""
    aside = {volume.target for volume in job.volumes if volume.aside}
    for bind in binds_of_volumes(job, container):
        if bind.target in aside:
            continue
        try:
            fd = open_in_root(root_fd, bind.target)
            mount(bind.source, f"/proc/self/fd/{fd}", None, MS_BIND | MS_REC)
            os.close(fd)
            if bind.read_only:
                fd = open_in_root(root_fd, bind.target)
                set_attributes(f"/proc/self/fd/{fd}", MOUNT_ATTR_RDONLY)
                os.close(fd)
        except OSError as error:
            raise LaunchError.of("mounting the volume", error, path=bind.source) from error


def make_spec(job: Job, container: Container, id_map: idmap.NamespaceMap | None) -> Spec:
    """What the launcher is told."""
    hostname = job.hostname or container.id[:12]
    environment = {"PATH": SEARCH_PATH, "HOSTNAME": hostname, "container": "unionfs"}
    if job.terminal:
        environment["TERM"] = "xterm"
    environment.update(job.environment)
    return Spec(
        rootfs=container.merged,
        command=job.command,
        environment=tuple(environment.items()),
        hostname=hostname,
        user=job.user,
        workdir=job.workdir,
        binds=(*binds_of_etc(job, container), *binds_of_volumes(job, container)),
        provided=(Bind("/etc/resolv.conf", "/etc/resolv.conf"),) if _borrows_resolver(job) else (),
        tmpfs=(*job.tmpfs, *(path for path in _RUNTIME_DIRECTORIES if job.shows_host and os.path.ismount(path))),
        tmpfs_options=job.tmpfs_options,
        own_network=job.own_network,
        uplink=Uplink(uplink_program(job), container.directory, job.published) if job.uplink else None,
        read_only=job.read_only,
        interactive=job.interactive,
        terminal=job.terminal,
        capabilities=job.capabilities,
        no_new_privileges=job.no_new_privileges,
        limits=job.limits,
        supervised=_is_supervised(job, id_map),
        id_map=id_map,
        mountpoints=os.path.join(container.directory, MOUNTPOINTS),
        runtime=job.runtime,
        bundle=os.path.join(container.directory, BUNDLE),
        namespace_socket=namespace_socket_of(container) if job.kind == "run" else "",
    )


def uplink_program(job: Job) -> str:
    """What connects a private network. Raises: CommandError."""
    from unionfs.launcher import private_network

    try:
        return private_network.find(job.uplink)
    except LaunchError as error:
        raise CommandError(str(error), hint=error.hint, status=OWN_FAILURE) from error


def namespace_socket_of(container: Container) -> str:
    """Where the monitor of a running container listens, see `launcher.namespace_socket`."""
    return os.path.join(container.directory, "namespaces")


def _check_driver(job: Job, store: ContainerStore) -> None:
    """Raises: CommandError when the root filesystem cannot be had in that way."""
    if job.shows_host and job.driver != FUSE:
        why = f"only the {FUSE} driver can show this machine's own /"
        raise CommandError(failed("run", "", why), hint=f"--driver {FUSE}", status=OWN_FAILURE)
    try:
        by_name(job.driver).check(store.root, (*job.lowers, "ground"))
    except DriverError as error:
        raise CommandError(str(error), hint=error.hint, status=OWN_FAILURE) from error


def job_of(container: Container) -> Job:
    """The job that the container was made of. Raises: CommandError when its record has none."""
    if not container.job:
        raise CommandError(failed("starting the container", container.name, "its record does not say how"))
    return from_record(
        container.job,
        lowers=container.lowers,
        command=container.command,
        kind=container.kind,
        name=container.name,
        image=container.image,
        image_digest=container.image_digest,
        image_type=container.image_type,
    )


def check_sources(job: Job) -> None:
    """Raises: CommandError for a lower that is no directory or a volume that does not exist."""
    for lower in job.lowers:
        try:
            check_directory("a lower directory", lower)
        except OptionError as error:
            raise CommandError(failed("run", "", str(error)), status=OWN_FAILURE) from error
    for volume in job.volumes:
        if volume.name:
            continue
        try:
            is_directory = stat.S_ISDIR(os.stat(volume.source).st_mode)
        except OSError as error:
            raise CommandError.of("binding the volume", error, status=OWN_FAILURE) from error
        if volume.aside and not is_directory:
            why = "only a directory can have its changes put aside (:O)"
            raise CommandError(failed("binding the volume", volume.source, why), status=OWN_FAILURE)


class _Turns:
    """The launcher's hooks for one job. They run in the monitor, which is another process: nothing comes back."""

    def __init__(self, job: Job, store: ContainerStore, container: Container, *, again: bool) -> None:
        self._again: Final = again
        self._job: Final = job
        self._store: Final = store
        self._container: Final = container

    def prepare(self, provisions: Provisions) -> None:
        """Mount the union of the root filesystem, then those of the volumes that are to stay as they are."""
        container, job = self._container, self._job
        os.umask(0o022)  # what we make is for the container, whatever our user's habit is
        try:
            remove_path(os.path.join(container.directory, VOLUMES))  # of a time that ended suddenly
            remove_path(os.path.join(container.directory, BUNDLE))
            write_etc(job, container, _nameserver(job))
            if container.has_ground:
                lay_ground(job, container)
            aside = [(volume, make_aside(volume, directory)) for volume, directory in volumes_aside(job, container)]
        except OSError as error:
            raise LaunchError.of("furnishing the container", error) from error
        self._store.update(
            container,
            monitor=os.getpid(),
            monitor_started=process_started(os.getpid()),
            began_ns=container.began_ns or _file_clock_ns(container.directory),
        )
        self.mount(provisions, container.branches, container.directory)
        try:
            make_volumes(job, container)
        except OSError as error:
            raise LaunchError.of("making the volumes of the image", error) from error
        for volume, directory in aside:
            self.mount(provisions, (volume.source,), directory)

    def started(self, pid: int) -> None:
        self._store.started(self._container, pid, os.getpid())

    def finish(self, exit_code: int, has_started: bool) -> None:
        """Write down how it ended, or leave no trace. Failing here is told, and changes nothing else."""
        try:
            self._store.note_outcome(self._container, exit_code)
            if self._job.remove or not (has_started or self._again):
                self._store.remove(self._container, self._remove_path, mine=True)
                self._remove_volumes()
            elif has_started:
                self._store.exited(self._container, exit_code)
                remove_path(os.path.join(self._container.directory, VOLUMES))
            else:
                self._store.unclaim(self._container, exit_code)
        except (OSError, ContainerError) as error:
            print(f"unionfs: warning: clearing up failed: {error}", file=sys.stderr)

    def _remove_volumes(self) -> None:
        """Those that are the container's alone, as docker has it for one that removes itself."""
        if names := anonymous_names(self._container):
            store = VolumeStore(self._store.root)
            for name in names:
                store.remove(name, remove_path)

    def _remove_path(self, path: str) -> None:
        by_name(self._job.driver).remove(path)
        remove_path(path)

    def make_up_for(self, id_map: idmap.NamespaceMap | None) -> None:
        """In the launching process, after a failure: what is left to do if no monitor has done it."""
        try:
            current = self._store.load(self._container.id)
        except ContainerError:
            return  # nothing is left
        has_started = current.recorded_status == "running"
        if current.recorded_status == "starting" and current.monitor is None:
            self.finish(OWN_FAILURE, has_started)
        elif current.recorded_status in ("starting", "running"):
            mapped.call(id_map, lambda: self._finish_alone(has_started))  # it may have files of its other ids

    def _finish_alone(self, has_started: bool) -> bytes:
        self.finish(OWN_FAILURE, has_started)
        return b""

    def mount(self, provisions: Provisions, lowers: tuple[str, ...], directory: str) -> None:
        """Mount the tree of a directory that has upper/, work/ and merged/."""
        job, container = self._job, self._container
        driver = job.driver
        if is_whole(driver) and directory != container.directory:
            driver = FUSE  # nobody wants a volume that stays as it is to be copied for that
        try:
            union = Options(
                lowers=lowers,
                upper=os.path.join(directory, "upper"),
                work=os.path.join(directory, "work"),
                whiteout=job.whiteout,
                durability=job.durability,
                unmapped_as_root=container.unmapped_as_root,
                skip_unreadable=container.skip_unreadable,
                hidden=container.hidden,
                **_ownership(driver),
            )
            log = os.path.join(container.directory, LOG)
            tree = Tree(union, directory, self._store.root, container.name, log, job.transport, job.debug, _warn)
            by_name(driver).mount(tree, provisions)
        except OptionError as error:
            raise LaunchError("", "", str(error)) from error
        except DriverError as error:
            raise LaunchError("", "", str(error), hint=error.hint) from error


def _is_supervised(job: Job, id_map: idmap.NamespaceMap | None) -> bool:
    """Whether owners and users that do not exist are to be had: by our own union and launcher only."""
    if id_map is None or not id_map.limited:
        return False
    return job.driver == FUSE and not job.runtime and seccomp.is_available()


class _Ownership(TypedDict):
    owners: OwnerTranslation | None
    overrides: str
    owners_kept: bool


def _ownership(driver: str) -> _Ownership:
    """Where there is one id, our union shows everything as root's, and keeps beside it whose it should be."""
    if driver == FUSE and idmap.is_alone():
        root = IdTranslation(all_as=0)
        return {"owners": OwnerTranslation(root, root), "overrides": "user", "owners_kept": True}
    return {"owners": None, "overrides": "", "owners_kept": False}


def _borrows_resolver(job: Job) -> bool:
    """Where /etc/resolv.conf leads into /run, which is another filesystem and not part of a view of the host."""
    return job.shows_host and not job.own_network and os.path.exists("/etc/resolv.conf")


def _nameserver(job: Job) -> str:
    """Whom the container's resolver asks; empty: those whom this machine asks."""
    if not job.uplink:
        return ""
    from unionfs.launcher.private_network import NAMESERVERS

    return NAMESERVERS[uplink_program(job)]


def _describe_etc(job: Job, container: Container) -> list[str]:
    return [f"write {bind.source} for {bind.target}" for bind in binds_of_etc(job, container)]


def _describe_unions(job: Job, container: Container) -> list[str]:
    unions = [(job.lowers, container.directory)]
    unions += [((volume.source,), directory) for volume, directory in volumes_aside(job, container)]
    return [
        f"mount the union of {', '.join(lowers)} at {directory}/merged, changes going to {directory}/upper"
        for lowers, directory in unions
    ]


def _file_clock_ns(directory: str) -> int:
    """Now, on the clock that file times of this filesystem are taken from."""
    os.utime(directory)
    return os.stat(directory).st_ctime_ns


def _tell_limits(why: str, supervised: bool) -> None:
    means = (
        "other users and owners are noted, and protect nothing"
        if supervised
        else "programs that change the user or the owner of files fail"
    )
    print(
        f"unionfs: note: the container has one user id only, since {why}: {means}\n  {SEE_DOCTOR}",
        file=sys.stderr,
    )


def _guess(job: Job, error: LaunchError) -> str:
    """What may be meant by a command that is not there."""
    if error.status == NOT_FOUND and os.path.isdir(job.command[0]):
        return f"to add {job.command[0]} to the root filesystem, name it with --lower, as the last one"
    return ""


def _warn(warning: str) -> None:
    print(f"unionfs: warning: {warning}", file=sys.stderr)
