"""The view of this machine on which `unionfs try` runs commands: its directories, and its PATH."""

from __future__ import annotations

import errno
import os
from typing import Final

from unionfs.containers.errors import ContainerError
from unionfs.launcher.spec import SEARCH_PATH
from unionfs.syscalls import files

_PROVIDED: Final = ("/dev", "/proc", "/sys", "/run")
"""Directories that the launcher makes, instead of showing the machine's."""


def check_shown(directory: str) -> None:
    """Raises: ContainerError if a command on the view would find this directory empty, or another one in its place."""
    root_fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        device = os.fstat(root_fd).st_dev
        place = ""
        for name in directory.split("/")[1:]:
            place = f"{place}/{name}"
            if os.stat(place).st_dev == device:
                continue
            try:
                fd = files.openat2(root_fd, os.fsencode(place[1:]), os.O_PATH, files.RESOLVE_NO_XDEV)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                if place in _PROVIDED:
                    raise ContainerError(
                        "",
                        "",
                        f"try: {directory} is not part of the view: the command has its own {place}",
                        hint="-w DIR names another working directory",
                    ) from None
                raise ContainerError(
                    "",
                    "",
                    f"try: {directory} is on another filesystem than /, mounted at {place}: "
                    "the command would see an empty directory",
                    hint=f"-v {place}:{place}:O shows it, and discards changes of it\n"
                    f"-v {place}:{place} shows it unprotected: the command changes the directory itself\n"
                    "-w DIR names another working directory",
                ) from None
            os.close(fd)
    except OSError as error:
        raise ContainerError.of("try: the working directory", error) from error
    finally:
        os.close(root_fd)


def with_system_programs(path: str) -> str:
    """PATH with the sbin directories of root's PATH, without which dpkg refuses to work."""
    present = path.split(":") if path else []
    return ":".join([*present, *(place for place in SEARCH_PATH.split(":") if place not in present)])
