"""Make filesystems to put branches on: ext4, xfs and btrfs in loop files, ext4 on a device of a thin pool, tmpfs, or
the directory of the run as it is.

A loop file reads and writes its file directly where it can, so that nothing is cached twice. All are mounted in the
run's own mount namespace and vanish with it; the loop device is freed by the kernel when its filesystem is unmounted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from unionfs.bench.child import FailedError
from unionfs.bench.run_directory import detach
from unionfs.drivers import device_tools
from unionfs.drivers.driver import DriverError
from unionfs.drivers.thin_pool import BASE, CONTAINER, Pool
from unionfs.syscalls import files, mountinfo, mounts

HERE: Final = "here"
"""The filesystem that the run's directory is on."""

TMPFS: Final = "tmpfs"

THIN: Final = "thin"
"""ext4 on a device of a thin pool, as the storage driver devicemapper makes it."""

_MKFS: Final = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-i", "8192", "-m", "0", "-E", "lazy_itable_init=1,nodiscard"),
    "xfs": ("mkfs.xfs", "-q", "-K", "-m", "reflink=1"),
    "btrfs": ("mkfs.btrfs", "-q", "-K"),
}
_OPTIONS: Final = {"ext4": "noatime,noinit_itable", "xfs": "noatime", "btrfs": "noatime"}
_PACKAGES: Final = {"ext4": "e2fsprogs", "xfs": "xfsprogs", "btrfs": "btrfs-progs"}
_MKFS_S: Final = 120
_LEAST: Final = 1 << 30  # xfs and btrfs want to be large; the file has holes

FILESYSTEMS: Final = (*_MKFS, TMPFS, THIN, HERE)


@dataclass(frozen=True, slots=True)
class BranchFilesystem:
    """A filesystem that holds the branches of a run."""

    name: str  # its name for --on
    fstype: str
    root: Path

    @property
    def lowers(self) -> Path:
        """The directory of the lowers."""
        return self.root / "L"

    @property
    def may_reflink(self) -> bool:
        """Try whether files can share their data here."""
        one, two = self.root / "reflink-1", self.root / "reflink-2"
        try:
            one.write_bytes(b"x" * 65536)
            with one.open("rb") as src, two.open("wb") as dst:
                files.ficlone(dst.fileno(), src.fileno())
        except OSError:
            return False
        finally:
            one.unlink(missing_ok=True)
            two.unlink(missing_ok=True)
        return True

    def make_lower(self, path: Path) -> None:
        """Make a directory for a lower; on btrfs a subvolume where that is allowed, since those have snapshots."""
        if self.fstype == "btrfs" and shutil.which("btrfs") and subvolume("create", path):
            return
        path.mkdir()


def subvolume(*command: str | Path) -> bool:
    """Run `btrfs subvolume ...`; return whether it succeeded."""
    done = subprocess.run(["btrfs", "subvolume", *command], check=False, capture_output=True, timeout=60)
    return done.returncode == 0


def why_missing(name: str) -> str | None:
    """Return why branches cannot be put on this filesystem here; None: they can."""
    if name == HERE:
        return None
    if name == TMPFS:
        return None if os.geteuid() == 0 else "this user may not mount it (no user namespaces)"
    if not is_machine_root():
        return "only root mounts loop files"
    if name == THIN:
        return why_no_thin_pools()
    tool = _MKFS[name][0]
    if not shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"):
        return f"{tool} is not installed (package {_PACKAGES[name]})"
    if not Path("/dev/loop-control").exists():
        return "there are no loop devices"
    return None if kernel_has(name) else f"this kernel has no {name}"


def why_no_thin_pools() -> str | None:
    """Return why there are no thin pools here; None: there are."""
    if not is_machine_root():
        return "only root makes thin pools"
    if not device_tools.load_thin_pool():
        return "this kernel has no dm_thin_pool"
    try:
        device_tools.check()
    except DriverError as error:
        return f"{error} ({error.hint})"
    return None


@contextlib.contextmanager
def thin_snapshot(root: Path, place: Path) -> Iterator[None]:
    """Context with a snapshot of the THIN filesystem at `root` mounted at `place`. Raises: FailedError, OSError."""
    pool, key = _pool_of(root), os.fspath(place)
    try:
        pool.begin(key, CONTAINER, (), "base")
        pool.finish(key)
        pool.mount(key, key)
        yield
        detach(place)
        pool.remove(key)
    except DriverError as error:
        raise FailedError(str(error)) from error
    finally:
        detach(place)


def _pool_of(root: Path) -> Pool:
    return Pool(os.fspath(root.parent))


def kernel_has(fstype: str) -> bool:
    """Return whether the kernel knows a type of filesystem; its module is loaded if that is allowed."""
    for _ in range(2):
        if f"\t{fstype}\n" in Path("/proc/filesystems").read_text():
            return True
        subprocess.run(["modprobe", fstype], capture_output=True, check=False, timeout=30)
    return False


def is_machine_root() -> bool:
    """Return whether this process is root outside of user namespaces."""
    return os.geteuid() == 0 and Path("/proc/self/uid_map").read_text().split()[2] == "4294967295"


def fstype_of(path: Path) -> str:
    """Return the type of the filesystem that a path is on, by mountinfo."""
    known = {mount.mountpoint: mount.fstype for mount in mountinfo.mounts()}
    return next((known[str(place)] for place in (path, *path.parents) if str(place) in known), "unknown")


def room(name: str, run: Path) -> int:
    """Return how many bytes a run may use on this filesystem: a loop file lies below `run`, tmpfs takes memory."""
    if name == TMPFS:
        memory = Path("/proc/meminfo").read_text()
        return int(memory.split("MemAvailable:")[1].split()[0]) * 1024 * 6 // 10
    there = os.statvfs(run)
    return there.f_bavail * there.f_frsize * 9 // 10


@contextlib.contextmanager
def ready(name: str, run: Path, size: int) -> Iterator[BranchFilesystem]:
    """Make an empty filesystem with room for `size` bytes; remove it afterwards. Raises: FailedError."""
    root = run / "g"
    root.mkdir()
    try:
        if name == HERE:
            filesystem = BranchFilesystem(name, fstype_of(run), root)
        else:
            _mount(name, run, root, size)
            filesystem = BranchFilesystem(name, fstype_of(root), root)
        filesystem.lowers.mkdir()
        yield filesystem
    finally:
        if name != HERE:
            detach(root)
        shutil.rmtree(root, ignore_errors=True)
        (run / "image").unlink(missing_ok=True)
        shutil.rmtree(run / "devicemapper", ignore_errors=True)


def _mount(name: str, run: Path, root: Path, size: int) -> None:
    if name == TMPFS:
        mounts.mount("tmpfs", os.fspath(root), "tmpfs", mounts.MS_NOATIME, f"size={size},mode=755")
        return
    if name == THIN:
        try:
            pool = _pool_of(root)
            pool.begin("base", BASE, (), None)
            pool.format("base")
            pool.finish("base")
            pool.mount("base", os.fspath(root))
        except DriverError as error:
            raise FailedError(str(error)) from error
        return
    image = run / "image"
    with image.open("wb") as file:
        file.truncate(max(_LEAST, size))
    _run([*_MKFS[name], os.fspath(image)])
    _run(["mount", "-o", f"loop,{_OPTIONS[name]}", "-t", name, os.fspath(image), os.fspath(root)])
    there = mountinfo.topmost_at(os.fspath(root))
    if there is not None:
        subprocess.run(["losetup", "--direct-io=on", there.source], check=False, capture_output=True, timeout=60)


def _run(argv: list[str]) -> None:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**os.environ, "PATH": path},
            timeout=_MKFS_S,
            check=False,
        )
    except FileNotFoundError:
        raise FailedError(f"{argv[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise FailedError(f"{argv[0]} did not end within {_MKFS_S} s") from None
    if done.returncode != 0:
        raise FailedError(f"{argv[0]} failed: {done.stderr.strip()[-300:]}")
