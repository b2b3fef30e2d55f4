"""What a container's directory holds for its root filesystem besides the upper: files of /etc, the ground, volumes.

    CONTAINER/etc/{hosts,hostname,resolv.conf}   the names of the machine, as the container sees it
    CONTAINER/ground/                            the lowest branch: empty directories and files to mount on
    CONTAINER/volumes/N/{upper,work,merged}      what was written to a volume that is to stay as it is

Without the ground, what is mounted somewhere would leave its mountpoint in the upper, and be listed as a change.
Knows jobs and directories. Does not mount anything.
"""

from __future__ import annotations

import os
import stat
from typing import Final

from unionfs.cli.containers import Container
from unionfs.cli.job import Job, Volume
from unionfs.launcher.spec import Bind

VOLUMES: Final = "volumes"

_ETC: Final = "etc"
_OWN_DIRECTORIES: Final = ("/proc", "/sys", "/dev")


def binds_of_etc(job: Job, container: Container) -> tuple[Bind, ...]:
    """On the host's network a root filesystem needs the host's names; the host's own `/` has them already."""
    if job.own_network or job.shows_host:
        return ()
    directory = os.path.join(container.directory, _ETC)
    return tuple(Bind(os.path.join(directory, name), f"/etc/{name}") for name in ("hosts", "hostname", "resolv.conf"))


def write_etc(job: Job, container: Container) -> None:
    """Make the files of `binds_of_etc`. Raises: OSError."""
    binds = binds_of_etc(job, container)
    if not binds:
        return
    hostname = job.hostname or container.id[:12]
    content = {
        "hosts": f"{_text_of('/etc/hosts') or '127.0.0.1 localhost'}\n127.0.1.1 {hostname}\n",
        "hostname": f"{hostname}\n",
        "resolv.conf": _text_of("/etc/resolv.conf"),
    }
    os.mkdir(os.path.join(container.directory, _ETC), 0o755)
    for bind in binds:
        with open(bind.source, "x", encoding="utf-8", errors="surrogateescape") as file:
            file.write(content[os.path.basename(bind.source)])


def _text_of(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read().rstrip("\n")
    except OSError:
        return ""


def binds_of_volumes(job: Job, container: Container) -> tuple[Bind, ...]:
    aside = dict(volumes_aside(job, container))
    return tuple(
        Bind(
            os.path.join(aside[volume], "merged") if volume in aside else volume.source, volume.target, volume.read_only
        )
        for volume in job.volumes
    )


def volumes_aside(job: Job, container: Container) -> list[tuple[Volume, str]]:
    """The volumes that get a union of their own, each with the directory of its branches."""
    aside = [volume for volume in job.volumes if volume.aside]
    return [(volume, os.path.join(container.directory, VOLUMES, str(number))) for number, volume in enumerate(aside)]


def make_aside(volume: Volume, directory: str) -> str:
    """Make the branches of such a volume's union, and return `directory`. Raises: OSError."""
    for part in ("upper", "work", "merged"):
        os.makedirs(os.path.join(directory, part), 0o755)
    # The root of the union shows the upper's mode, so it begins as what it covers.
    os.chmod(os.path.join(directory, "upper"), stat.S_IMODE(os.stat(volume.source).st_mode))
    return directory


def has_ground(job: Job) -> bool:
    """Whether the job mounts anything where a root filesystem need not have a place for it. The host's `/` has most."""
    return not job.shows_host or bool(job.volumes or job.tmpfs)


def lay_ground(job: Job, container: Container) -> None:
    """Make the ground: a place for everything that is mounted. Raises: OSError."""
    os.mkdir(container.ground, 0o755)
    directories = [*job.tmpfs, *(() if job.shows_host else _OWN_DIRECTORIES)]
    files = [bind.target for bind in binds_of_etc(job, container)]
    for volume in job.volumes:
        (directories if stat.S_ISDIR(os.stat(volume.source).st_mode) else files).append(volume.target)
    for path in directories:
        os.makedirs(container.ground + path, 0o755, exist_ok=True)
    for path in files:
        os.makedirs(os.path.dirname(container.ground + path), 0o755, exist_ok=True)
        os.close(os.open(container.ground + path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
