"""Run the programs that make block devices: dmsetup, losetup, mke2fs and others. Each failure is a DriverError with the
program's error message, or with the Debian package that has the program.

Knows no pools and no containers.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Final

from unionfs.drivers.driver import DriverError
from unionfs.printable import printable_line
from unionfs.syscalls.namespaces import CLONE_NEWPID, setns

_PACKAGES: Final = {
    "dmsetup": "dmsetup",
    "losetup": "mount",
    "blkdiscard": "util-linux",
    "blockdev": "util-linux",
    "mke2fs": "e2fsprogs",
    "thin_check": "thin-provisioning-tools",
}
"""Program -> the Debian package that has it."""

_DIRECTORIES: Final = "/usr/sbin:/usr/bin:/sbin:/bin"  # root's PATH, as su(1) without `-` does not set it
_TIMEOUT_S: Final = 300
_UDEV: Final = "/run/udev/control"


class ToolError(DriverError):
    """A program failed. `said`: the last line of its standard error."""

    def __init__(self, what: str, said: str) -> None:
        super().__init__(f"{what} failed: {printable_line(said)}")
        self.said = said


def check() -> None:
    """Raises: DriverError if a program is missing."""
    for program in _PACKAGES:
        _find(program)


def run(program: str, *words: str) -> str:
    """Run one of the programs and return its standard output. Raises: DriverError."""
    path = _find(program)
    environment = {"PATH": _DIRECTORIES, "LC_ALL": "C"}
    if not has_udev():  # then dmsetup makes the device nodes, instead of waiting for udev
        environment["DM_DISABLE_UDEV"] = "1"
    try:
        _stay_in_pid_namespace()
        done = subprocess.run(
            [path, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ToolError(program, f"no end within {_TIMEOUT_S} s") from None
    except OSError as error:
        raise DriverError.of(f"running {program}", error) from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        lines = [line for line in said if line.strip() and not line.startswith("Command failed")]
        raise ToolError(program, lines[-1] if lines else f"exit code {done.returncode}")
    return done.stdout.decode(errors="replace")


def _stay_in_pid_namespace() -> None:
    """Make children in our own pid namespace: a process that has made one for a container that has ended could not
    fork."""
    if os.readlink("/proc/self/ns/pid_for_children") == os.readlink("/proc/self/ns/pid"):
        return
    fd = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(fd, CLONE_NEWPID)
    finally:
        os.close(fd)


def has_udev() -> bool:
    """Whether udev makes the nodes in /dev."""
    return os.path.exists(_UDEV)


def load_thin_pool() -> bool:
    """Load the kernel's module for thin provisioning, if it is not loaded. Returns whether the kernel has it."""
    if os.path.isdir("/sys/module/dm_thin_pool"):
        return True
    modprobe = shutil.which("modprobe", path=_DIRECTORIES)
    if modprobe is not None:
        subprocess.run([modprobe, "-q", "dm_thin_pool"], stdin=subprocess.DEVNULL, timeout=_TIMEOUT_S, check=False)
    return os.path.isdir("/sys/module/dm_thin_pool")


def _find(program: str) -> str:
    path = shutil.which(program, path=_DIRECTORIES)
    if path is None:
        package = _PACKAGES[program]
        raise DriverError(f"{program} is not installed", f"apt-get install {package}")
    return path
