"""AppArmor profiles of processes (`process.apparmorProfile`)."""

from __future__ import annotations

import os
from typing import Final

from unionfs.oci.errors import OciError
from unionfs.syscalls.files import filesystem_type

_ENABLED: Final = "/sys/module/apparmor/parameters/enabled"
_PROC_SUPER_MAGIC: Final = 0x9FA0  # statfs(2)
_ATTRIBUTES: Final = ("/proc/thread-self/attr/apparmor/exec", "/proc/thread-self/attr/exec")


def is_enabled() -> bool:
    try:
        with open(_ENABLED, encoding="ascii") as file:
            return file.read().startswith("Y")
    except OSError:
        return False


def check(profile: str) -> None:
    """Refuse a profile if the kernel has no AppArmor. Raises: OciError."""
    if profile and not is_enabled():
        raise OciError("process.apparmorProfile: apparmor: config provided but apparmor not supported on this machine")


def open_label(profile: str) -> tuple[int, str] | None:
    """Open the file to which this process writes the profile that its next exec(2) changes to; None without a profile.

    Only the process that opens the file may write to it. Raises: OciError, also if /proc is no procfs.
    """
    for path in _ATTRIBUTES if profile else ():
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            if filesystem_type(fd) != _PROC_SUPER_MAGIC:
                raise OciError(f"{path} is no file of the kernel")
            return fd, profile
        except FileNotFoundError:
            continue
        except OSError as error:
            raise OciError.of("opening the label", error) from error
    return None
