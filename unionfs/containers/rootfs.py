"""What a container's directory holds for its root filesystem besides the upper: files of /etc, the ground, volumes.

    CONTAINER/etc/{hosts,hostname,resolv.conf}   the names of the machine, as the container sees it
    CONTAINER/ground/                            the lowest branch: empty directories and files to mount on
    CONTAINER/mountpoints                        what had to be made all the same, where a layer hides the ground
    CONTAINER/volumes/N/{upper,work,merged}      what was written to a volume that is to stay as it is

Without the ground, what is mounted somewhere would leave its mountpoint in the upper, and be listed as a change.
Knows jobs and directories. Does not mount anything.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from unionfs.containers.copy import Copy
from unionfs.containers.job import Job, Volume
from unionfs.containers.record import Container
from unionfs.containers.volumes import VolumeStore, anonymous_names
from unionfs.launcher.spec import Bind
from unionfs.trees.open_beneath import open_in_root
from unionfs.trees.remove import remove_path

VOLUMES: Final = "volumes"
MOUNTPOINTS: Final = "mountpoints"

_ETC: Final = "etc"
_OWN_DIRECTORIES: Final = ("/proc", "/sys", "/dev")


def binds_of_etc(job: Job, container: Container) -> tuple[Bind, ...]:
    """On a network a root filesystem needs the names there are; the host's own `/` has the host's already."""
    if job.own_network and not job.uplink:
        return ()
    names: tuple[str, ...] = ("hosts", "hostname", "resolv.conf")
    if job.shows_host:
        names = ("resolv.conf",) if job.uplink else ()
    directory = os.path.join(container.directory, _ETC)
    return tuple(Bind(os.path.join(directory, name), f"/etc/{name}") for name in names)


def write_etc(job: Job, container: Container, nameserver: str = "") -> None:
    """Make the files of `binds_of_etc`, asking `nameserver` instead of the host's if there is one. Raises: OSError."""
    binds = binds_of_etc(job, container)
    if not binds:
        return
    hostname = job.hostname or container.id[:12]
    added = [f"{address} {name}" for name, address in job.hosts]
    content = {
        "hosts": "\n".join([_text_of("/etc/hosts") or "127.0.0.1 localhost", f"127.0.1.1 {hostname}", *added, ""]),
        "hostname": f"{hostname}\n",
        "resolv.conf": _resolver(job.nameservers or ((nameserver,) if nameserver else ())),
    }
    os.makedirs(os.path.join(container.directory, _ETC), 0o755, exist_ok=True)
    for bind in binds:  # also when it is started again: this machine's names may have changed
        with open(bind.source, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(content[os.path.basename(bind.source)])


def _resolver(nameservers: tuple[str, ...]) -> str:
    text = _text_of("/etc/resolv.conf")
    if not nameservers:
        return text
    kept = [line for line in text.splitlines() if line.split()[:1] not in (["nameserver"], [])]
    return "\n".join([*kept, *(f"nameserver {nameserver}" for nameserver in nameservers), ""])


def _text_of(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read().rstrip("\n")
    except OSError:
        return ""


def binds_of_volumes(job: Job, container: Container) -> tuple[Bind, ...]:
    aside = dict(volumes_aside(job, container))
    anonymous = tuple(Bind(directory, path) for path, directory in anonymous_volumes(job, container))
    return anonymous + tuple(
        Bind(
            os.path.join(aside[volume], "merged") if volume in aside else volume.source, volume.target, volume.read_only
        )
        for volume in job.volumes
    )


def volumes_aside(job: Job, container: Container) -> list[tuple[Volume, str]]:
    """The volumes that get a union of their own, each with the directory of its branches."""
    aside = [volume for volume in job.volumes if volume.aside]
    return [(volume, os.path.join(container.directory, VOLUMES, str(number))) for number, volume in enumerate(aside)]


def anonymous_volumes(job: Job, container: Container) -> list[tuple[str, str]]:
    """The volumes without a name: path in the container, and the directory that is shown there."""
    store = VolumeStore(os.path.dirname(os.path.dirname(container.directory)))
    return [(path, store.path(name)) for path, name in zip(job.anonymous, anonymous_names(container), strict=True)]


def make_volumes(job: Job, container: Container) -> None:
    """Make the volumes of the store that are missing, and fill those that are empty with what the image has in their
    place. Raises: OSError.

    Preconditions: the container's union is mounted.
    """
    store = VolumeStore(os.path.dirname(os.path.dirname(container.directory)))
    wanted = [(path, store.create(name, anonymous=True).directory)
              for path, name in zip(job.anonymous, anonymous_names(container), strict=True)]  # fmt: skip
    for volume in job.volumes:
        if volume.name:
            place = store.create(volume.name).directory
            wanted += [(volume.target, place)] if volume.filled else []
    empty = [(path, place) for path, place in wanted if not os.listdir(place)]
    if not empty:
        return
    root_fd = os.open(container.merged, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for path, place in empty:
            _fill(root_fd, path, place, owner=(0, 0) if _has_one_id(container) else None)
    finally:
        os.close(root_fd)


def _has_one_id(container: Container) -> bool:
    return sum(count for _, _, count in container.uid_map) == 1


def _fill(root_fd: int, path: str, place: str, owner: tuple[int, int] | None) -> None:
    """Make `place`, which is empty, what is at `path`: aside, so that it is filled wholly or not at all."""
    aside = f"{place}.{os.getpid()}"
    remove_path(aside)
    try:
        _copy_directory(root_fd, path, aside, owner)
        os.rename(aside, place)
    except OSError as error:
        remove_path(aside)
        if error.errno != errno.ENOTEMPTY:  # another container was faster
            raise


def _copy_directory(root_fd: int, path: str, place: str, owner: tuple[int, int] | None) -> None:
    try:
        source_fd = open_in_root(root_fd, path, os.O_PATH | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        os.mkdir(place, 0o755)
        return
    try:
        parent_fd = os.open(os.path.dirname(place), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            Copy(owner).run(source_fd, ".", parent_fd, os.path.basename(place))
        finally:
            os.close(parent_fd)
    finally:
        os.close(source_fd)


def mountpoints(container: Container) -> frozenset[bytes]:
    """Paths in the container that are no change, if nothing is there but what was made to mount on."""
    try:
        with open(os.path.join(container.directory, MOUNTPOINTS), "rb") as file:
            return frozenset(file.read().split(b"\0")) - {b""}
    except FileNotFoundError:
        return frozenset()


def make_aside(volume: Volume, directory: str) -> str:
    """Make the branches of such a volume's union, and return `directory`. Raises: OSError."""
    for part in ("upper", "work", "merged"):
        os.makedirs(os.path.join(directory, part), 0o755, exist_ok=True)
    # The root of the union shows the upper's mode, so it begins as what it covers.
    os.chmod(os.path.join(directory, "upper"), stat.S_IMODE(os.stat(volume.source).st_mode))
    return directory


def has_ground(job: Job) -> bool:
    """Whether the job mounts anything where a root filesystem need not have a place for it. The host's `/` has most."""
    return not job.shows_host or bool(job.volumes or job.tmpfs or job.anonymous)


def lay_ground(job: Job, container: Container) -> None:
    """Make the ground: a place for everything that is mounted. Raises: OSError."""
    os.makedirs(container.ground, 0o755, exist_ok=True)
    directories = [*job.tmpfs, *job.anonymous, *(() if job.shows_host else _OWN_DIRECTORIES)]
    files = [bind.target for bind in binds_of_etc(job, container)]
    for volume in job.volumes:
        (directories if stat.S_ISDIR(os.stat(volume.source).st_mode) else files).append(volume.target)
    for path in directories:
        os.makedirs(container.ground + path, 0o755, exist_ok=True)
    for path in files:
        os.makedirs(os.path.dirname(container.ground + path), 0o755, exist_ok=True)
        os.close(os.open(container.ground + path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
