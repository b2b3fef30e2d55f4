"""The systems side by side: how each is mounted and unmounted, and why one may be missing here.

Nothing here looks at a mounted tree: mountinfo says what is mounted, and children with time limits do the rest.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.mountinfo import detach, mount_at
from tests.support.users import CHECKOUT
from unionfs import compiled
from unionfs.bench.child import FailedError

NATIVE: Final = "native"
OURS: Final = "ours"
OURS_PYFUSE3: Final = "ours, pyfuse3"
FUSE_OVERLAYFS: Final = "fuse-overlayfs"
OVERLAYFS: Final = "overlayfs"

SYSTEMS: Final = (OURS, OURS_PYFUSE3, FUSE_OVERLAYFS, OVERLAYFS, NATIVE)
"""All there are, in the order of the columns."""

OPTIONAL: Final = (OURS_PYFUSE3,)
"""Measured on request only."""

_MOUNT_TIMEOUT_S: Final = 30
_UMOUNT_TIMEOUT_S: Final = 30
_LEAVE_S: Final = 10


@dataclass(frozen=True, slots=True)
class Mounted:
    """A mounted system."""

    merged: Path
    daemon: int | None  # pid
    mount_s: float  # how long the mount command took


@dataclass(frozen=True, slots=True)
class Branches:
    """What is mounted. `base` is a short path, so that hundreds of lowers fit into the options of mount(2)."""

    base: Path
    lowers: Sequence[Path]

    @property
    def upper(self) -> Path:
        """The writable branch."""
        return self.base / "upper"

    @property
    def work(self) -> Path:
        """Its work directory."""
        return self.base / "work"

    @property
    def merged(self) -> Path:
        """Where the union is mounted."""
        return self.base / "merged"


def why_missing(system: str) -> str | None:
    """Why `system` cannot be measured here; None: it can."""
    if system == FUSE_OVERLAYFS and not shutil.which("fuse-overlayfs"):
        return "fuse-overlayfs is not installed"
    if system == OVERLAYFS:
        if os.geteuid() != 0:
            return "only root mounts it"
        if "\toverlay\n" not in Path("/proc/filesystems").read_text():
            subprocess.run(["modprobe", "overlay"], capture_output=True, check=False, timeout=30)
            if "\toverlay\n" not in Path("/proc/filesystems").read_text():
                return "this kernel has no overlayfs"
    return None


def version(system: str) -> str:
    """The version to stand beside the numbers of `system`."""
    if system == FUSE_OVERLAYFS:
        said = subprocess.run(["fuse-overlayfs", "--version"], capture_output=True, text=True, check=False, timeout=20)
        lines = (said.stdout + said.stderr).splitlines()
        return next((line.split()[-1] for line in lines if line.startswith("fuse-overlayfs")), "unknown")
    if system in (OURS, OURS_PYFUSE3):
        argv = ["git", "describe", "--always", "--dirty"]
        said = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=20)
        return f"{said.stdout.strip() or 'unknown'} ({compiled.why_not_usable() or 'compiled'})"
    return platform.release()


@contextmanager
def mounted(system: str, branches: Branches) -> Iterator[Mounted]:
    """Mount `system`; whatever happens, it is unmounted and its daemon has ended afterwards.

    Raises: FailedError when it cannot be mounted or does not leave in time.
    """
    argv = _mount_argv(system, branches)
    began = time.perf_counter()
    try:
        _command(argv, branches.lowers[0].parent, _MOUNT_TIMEOUT_S)
        mount_s = time.perf_counter() - began
        if mount_at(branches.merged) is None:
            raise FailedError(f"{argv[0]} said nothing, but nothing is mounted")
        daemons = _daemons_of(branches.merged)
        yield Mounted(branches.merged, daemons[0] if daemons else None, mount_s)
        _command(_umount_argv(branches.merged), branches.base, _UMOUNT_TIMEOUT_S)
    finally:
        left = _daemons_of(branches.merged)
        while mount_at(branches.merged) is not None:
            detach(branches.merged)
        _end(left)


def _mount_argv(system: str, branches: Branches) -> list[str]:
    upper, work, merged = map(os.fspath, (branches.upper, branches.work, branches.merged))
    if system in (OURS, OURS_PYFUSE3):
        argv = [sys.executable, "-m", "unionfs", "mount"]
        argv += ["--transport", "kernel" if system == OURS else "pyfuse3"]
        for lower in branches.lowers:
            argv += ["--lower", os.fspath(lower)]
        return [*argv, "--upper", upper, "--work", work, merged]
    if system == FUSE_OVERLAYFS:
        lowers = ":".join(map(os.fspath, branches.lowers))
        return ["fuse-overlayfs", "-o", f"lowerdir={lowers},upperdir={upper},workdir={work}", merged]
    # By relative names: all options together must fit into one page.
    lowers = ":".join(os.path.relpath(lower, branches.lowers[0].parent) for lower in branches.lowers)
    return ["mount", "-t", "overlay", "overlay", "-o", f"lowerdir={lowers},upperdir={upper},workdir={work}", merged]


def _umount_argv(merged: Path) -> list[str]:
    return ["umount", os.fspath(merged)] if os.geteuid() == 0 else ["fusermount3", "-u", os.fspath(merged)]


def _command(argv: list[str], cwd: Path, timeout_s: float) -> None:
    env = {**os.environ, "PYTHONPATH": os.fspath(CHECKOUT), "LIBMOUNT_FORCE_MOUNT2": "always"}
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env=env,
            start_new_session=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise FailedError(f"{argv[0]} did not end within {timeout_s} s") from None
    if done.returncode != 0:
        raise FailedError(f"{argv[0]} failed: {done.stderr.strip()[-300:]}")


def _daemons_of(merged: Path) -> list[int]:
    """The processes that have `merged` as an argument: the daemon that serves it."""
    found = []
    wanted = os.fsencode(merged)
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if wanted in cmdline.read_bytes().split(b"\0"):
                found.append(int(cmdline.parent.name))
    return found


def _end(pids: Sequence[int]) -> None:
    """Wait for processes that were told to leave; kill what stays."""
    deadline = time.monotonic() + _LEAVE_S
    while any(map(_lives, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    for pid in pids:
        with suppress(ProcessLookupError):
            if _lives(pid):
                os.kill(pid, signal.SIGKILL)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
