"""Complete the upper of a container before it is read (see core.complete): with names of hard links, and with data.

A daemon adds the names when it ends. The daemon of a running container adds the names when the root directory is
synced, and the data on request (files.COMPLETE). If no daemon runs, the union is opened once for this.
"""

from __future__ import annotations

import errno
import os

from unionfs.containers.errors import ContainerError
from unionfs.containers.ids import id_map_of
from unionfs.containers.record import Container
from unionfs.containers.root_access import in_running
from unionfs.containers.rootfs import image_file_shown, union_options
from unionfs.core import hardlinks
from unionfs.core.options import OptionError
from unionfs.drivers.names import FUSE
from unionfs.launcher import userns
from unionfs.syscalls import files


def complete_upper(container: Container, what: str) -> None:
    """Give the container's upper the names of hard links, and the data, that it lacks. `what`: the verb, for errors.
    Raises: ContainerError, LaunchError."""
    _complete(container, what, with_data=True)


def complete_names(container: Container, what: str) -> None:
    """Give the container's upper the names of hard links that it lacks. `what`: the verb, for errors. Raises:
    ContainerError, LaunchError."""
    _complete(container, what, with_data=False)


def _complete(container: Container, what: str, *, with_data: bool) -> None:
    if container.config.rootfs.driver != FUSE:
        return
    try:
        if hardlinks.is_complete(os.path.join(container.directory, "work")):
            return
        if container.status == "running":
            in_running(container, _bring_all if with_data else _bring_names, what)
        else:
            userns.call(id_map_of(container), lambda: _complete_ended(container, with_data=with_data))
    except OptionError as error:
        raise ContainerError(what, container.name, str(error)) from error
    except OSError as error:
        raise ContainerError.of(what, error, subject=container.name) from error


def _complete_ended(container: Container, *, with_data: bool) -> bytes:
    from unionfs.core import complete  # late: it imports most of the core

    with image_file_shown(container):
        union = union_options(container, container.branches, container.directory, FUSE)
        complete.complete_upper(union, with_data=with_data)
    return b""


def _bring_names(root_fd: int) -> None:
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root_fd)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _bring_all(root_fd: int) -> None:
    _bring_names(root_fd)
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root_fd)
    try:
        files.bring_data(fd)
    except OSError as error:
        if error.errno != errno.ENOTTY:  # the other transport, with which files are copied up whole
            raise
    finally:
        os.close(fd)
