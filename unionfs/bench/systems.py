"""The systems side by side: how each shows a lower to be changed, and why one may be missing.

    ours, ours pyfuse3      `unionfs mount`, each transport
    fuse-overlayfs, unionfs-fuse
    overlayfs               the kernel's, mounted by root
    overlayfs rootless      the kernel's, mounted in a user namespace
    btrfs snapshot          the lower is a subvolume and what is changed a snapshot of it: block by block
    reflink                 the file is copied by sharing its data (FICLONE), then changed: block by block
    copy                    the file is copied, then changed: what a storage driver without copy-up does (vfs)
    cp                      the same by the command `cp -p --reflink=auto`, its start included

A FUSE daemon runs in the foreground as a child that dies with its parent. The kernel's overlayfs is mounted by the
measuring child, in a mount namespace of its own, so it is gone with the child. Nothing here looks into a mount.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from unionfs.bench import first_write
from unionfs.bench.child import FailedError, die_with_parent
from unionfs.bench.filesystems import Ground, subvolume
from unionfs.bench.first_write import Fetch
from unionfs.bench.run_directory import detach
from unionfs.syscalls import mountinfo, mounts, namespaces

OURS: Final = "ours"
OURS_PYFUSE3: Final = "ours, pyfuse3"
FUSE_OVERLAYFS: Final = "fuse-overlayfs"
UNIONFS_FUSE: Final = "unionfs-fuse"
OVERLAYFS: Final = "overlayfs"
OVERLAYFS_ROOTLESS: Final = "overlayfs rootless"
SNAPSHOT: Final = "btrfs snapshot"
REFLINK: Final = "reflink"
COPY: Final = "copy"
CP: Final = "cp"

SYSTEMS: Final = (
    OURS,
    OURS_PYFUSE3,
    FUSE_OVERLAYFS,
    UNIONFS_FUSE,
    OVERLAYFS,
    OVERLAYFS_ROOTLESS,
    SNAPSHOT,
    REFLINK,
    COPY,
    CP,
)
"""All there are, in the order of tables and pictures."""

COPYING: Final = (SNAPSHOT, REFLINK, COPY, CP)
"""No unions: they have no layers."""

_FUSERMOUNT_S: Final = 20


@dataclass(frozen=True, slots=True)
class SessionDirectories:
    """The directories of one session; short, so that hundreds of lowers fit into the options of mount(2)."""

    base: Path

    def make(self) -> SessionDirectories:
        """Make them. A higher layer of overlayfs must be on the same filesystem as its work directory."""
        for name in ("upper", "work", "merged"):
            (self.base / name).mkdir(parents=True)
        return self

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


@dataclass(frozen=True, slots=True)
class Shown:
    """A system that shows a lower. `enter` is called by the measuring child before anything else."""

    merged: Path
    upper: Path
    fetch: Fetch | None = None
    enter: Callable[[], None] | None = None


def why_missing(system: str) -> str | None:
    """Why `system` cannot be measured on this machine; None: it can."""
    if system in (FUSE_OVERLAYFS, UNIONFS_FUSE, CP) and not shutil.which(system):
        return f"{system} is not installed"
    if system == OURS_PYFUSE3:
        from importlib.util import find_spec

        if find_spec("pyfuse3") is None:
            return "pyfuse3 is not installed"
    if system in (OVERLAYFS, OVERLAYFS_ROOTLESS):
        if "\toverlay\n" not in Path("/proc/filesystems").read_text():
            subprocess.run(["modprobe", "overlay"], capture_output=True, check=False, timeout=30)
            if "\toverlay\n" not in Path("/proc/filesystems").read_text():
                return "this kernel has no overlayfs"
        if system == OVERLAYFS and (os.geteuid() != 0 or in_user_namespace()):
            return "only root mounts it"
        if system == OVERLAYFS_ROOTLESS and os.geteuid() != 0:
            return "this user may make no user namespace"
    if system in (OURS, OURS_PYFUSE3, FUSE_OVERLAYFS, UNIONFS_FUSE) and not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse is missing or closed to this user"
    return None


def why_not_on(system: str, ground: Ground, *, may_reflink: bool) -> str | None:
    """Why `system` makes no sense on this filesystem; None: it does."""
    if system == SNAPSHOT and ground.fstype != "btrfs":
        return f"{ground.fstype} has no snapshots"
    if system == SNAPSHOT and not shutil.which("btrfs"):
        return "btrfs-progs is not installed"
    if system == REFLINK and not may_reflink:
        return f"{ground.fstype} has no reflinks"
    return None


def version(system: str) -> str:
    """The version to stand beside the figures of `system`."""
    if system in (OURS, OURS_PYFUSE3):
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("unionfs")
        except PackageNotFoundError:
            return "unknown"
    if system in (FUSE_OVERLAYFS, UNIONFS_FUSE):
        said = subprocess.run([system, "--version"], capture_output=True, text=True, check=False, timeout=20)
        lines = (said.stdout + said.stderr).splitlines()
        return next((line.split()[-1] for line in lines if system in line and "version" in line), "unknown")
    return f"Linux {platform.release()}"


@contextlib.contextmanager
def shown(
    system: str, ground: Ground, lowers: Sequence[str], place: SessionDirectories, timeout_s: float
) -> Iterator[Shown]:
    """Let `system` show `lowers` (below the ground's lowers); unmounted and ended afterwards, whatever happens.
    `timeout_s` is for its start, and for its end.

    Raises: FailedError when it cannot, or does not leave in time.
    """
    paths = [ground.lowers / lower for lower in lowers]
    if system in (COPY, REFLINK, CP):
        plain = first_write.copy_apart if ground.fstype in _SHARING else first_write.copy
        fetch = {COPY: plain, REFLINK: first_write.reflink, CP: first_write.cp}[system]
        yield Shown(place.merged, place.merged, fetch=fetch)
    elif system == SNAPSHOT:
        place.merged.rmdir()
        if not subvolume("snapshot", paths[0], place.merged):
            raise FailedError("btrfs subvolume snapshot failed")
        yield Shown(place.merged, place.merged)
    elif system in (OVERLAYFS, OVERLAYFS_ROOTLESS):
        yield Shown(place.merged, place.upper, enter=lambda: _mount_overlay(system, ground, lowers, place))
    else:
        with _served(_argv(system, paths, place), place, timeout_s):
            yield Shown(place.merged, place.upper)


_SHARING: Final = ("btrfs", "xfs")  # where copy_file_range(2) shares data instead of copying them


def in_user_namespace() -> bool:
    """Whether root here is not the machine's."""
    return Path("/proc/self/uid_map").read_text().split()[2] != "4294967295"


def _argv(system: str, lowers: Sequence[Path], place: SessionDirectories) -> list[str]:
    upper, work, merged = map(os.fspath, (place.upper, place.work, place.merged))
    names = list(map(os.fspath, lowers))
    if system in (OURS, OURS_PYFUSE3):
        transport = "kernel" if system == OURS else "pyfuse3"
        argv = [sys.executable, "-m", "unionfs", "mount", "--foreground", "--transport", transport]
        for name in names:
            argv += ["--lower", name]
        return [*argv, "--upper", upper, "--work", work, merged]
    if system == FUSE_OVERLAYFS:
        return [system, "-f", "-o", f"lowerdir={':'.join(names)},upperdir={upper},workdir={work}", merged]
    branches = ":".join([f"{upper}=RW", *(f"{name}=RO" for name in names)])
    return [system, "-f", "-o", "cow", branches, merged]  # unionfs-fuse's word


@contextlib.contextmanager
def _served(argv: list[str], place: SessionDirectories, timeout_s: float) -> Iterator[None]:
    """A FUSE daemon in the foreground, from the moment its mount is there to its end."""
    with (place.base / "log").open("w+b") as log:
        daemon = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509  there is one thread
            env=_environment(),
        )
        try:
            _wait_until_mounted(daemon, argv[0], place, timeout_s)
            yield
            _unmount(place.merged)
            daemon.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise FailedError(f"{Path(argv[0]).name} does not end after its mount has gone") from None
        finally:
            while mountinfo.topmost_at(os.fspath(place.merged)) is not None:
                detach(place.merged)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(daemon.pid, signal.SIGKILL)
            daemon.wait()


def _environment() -> dict[str, str]:
    """Ours without the defaults that users set, and so that the same `unionfs` is found from any directory."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("UNIONFS_")}
    code = Path(__file__).resolve().parents[2]
    if code.name != "site-packages":
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (os.fspath(code), env.get("PYTHONPATH"))))
    return env


def _wait_until_mounted(
    daemon: subprocess.Popen[bytes], name: str, place: SessionDirectories, timeout_s: float
) -> None:
    deadline = time.monotonic() + timeout_s
    while mountinfo.topmost_at(os.fspath(place.merged)) is None:
        if daemon.poll() is not None:
            said = (place.base / "log").read_text(errors="replace").strip()
            raise FailedError(f"{Path(name).name} ended: {said[-300:] or daemon.returncode}")
        if time.monotonic() > deadline:
            raise FailedError(f"{Path(name).name} has mounted nothing within {timeout_s:g} s")
        time.sleep(0.002)


def _unmount(merged: Path) -> None:
    try:
        mounts.umount2(os.fspath(merged), mounts.UMOUNT_NOFOLLOW)
    except PermissionError:
        argv = ["fusermount3", "-u", os.fspath(merged)]
        subprocess.run(argv, check=False, capture_output=True, timeout=_FUSERMOUNT_S)
    except OSError as why:
        raise FailedError(f"unmounting failed: {why.strerror}") from None


def _mount_overlay(system: str, ground: Ground, lowers: Sequence[str], place: SessionDirectories) -> None:
    """Mount the kernel's overlayfs in new namespaces of this process. By relative names: all options must fit into one
    page. Raises: OSError."""
    options = f"lowerdir={':'.join(lowers)},upperdir={place.upper},workdir={place.work}"
    if system == OVERLAYFS_ROOTLESS:
        uid, gid = os.geteuid(), os.getegid()
        namespaces.unshare(namespaces.CLONE_NEWUSER | namespaces.CLONE_NEWNS)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
        die_with_parent()
        options += ",userxattr"
    else:
        namespaces.unshare(namespaces.CLONE_NEWNS)
    mounts.mount(None, "/", None, mounts.MS_REC | mounts.MS_PRIVATE)
    os.chdir(ground.lowers)
    mounts.mount("overlay", os.fspath(place.merged), "overlay", 0, options)
