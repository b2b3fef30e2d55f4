"""A view of this machine, as `unionfs try` runs commands on: which directories it shows, where programs are found."""

from __future__ import annotations

import errno
import os
from typing import Final

from unionfs.containers.errors import ContainerError
from unionfs.launcher.spec import SEARCH_PATH
from unionfs.syscalls import files

_PROVIDED: Final = ("/dev", "/proc", "/sys", "/run")
"""What the launcher makes anew: no use in showing the machine's own."""


def check_shown(directory: str) -> None:
    """Raises: ContainerError if a command on the view would find this directory empty, or another one."""
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
                        f"try: {directory} is not part of the view: the command has a {place} of its own",
                        hint="-w DIR starts the command elsewhere",
                    ) from None
                raise ContainerError(
                    "",
                    "",
                    f"try: {directory} is on another filesystem than /, mounted at {place}: "
                    "the command would see an empty directory",
                    hint=f"-v {place}:{place}:O shows it, and throws away what is changed there\n"
                    f"-v {place}:{place} shows it unprotected: what is changed there is changed at once\n"
                    "-w DIR starts the command elsewhere",
                ) from None
            os.close(fd)
    except OSError as error:
        raise ContainerError.of("try: the working directory", error) from error
    finally:
        os.close(root_fd)


def with_system_programs(path: str) -> str:
    """PATH with the places that a user's own often lacks, and root's has: dpkg refuses to work without them."""
    present = path.split(":") if path else []
    return ":".join([*present, *(place for place in SEARCH_PATH.split(":") if place not in present)])
