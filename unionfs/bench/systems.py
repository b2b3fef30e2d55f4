"""Find, mount and unmount the systems that are compared, or say why one cannot be measured here.

    ours, ours pyfuse3      `unionfs mount`, each transport
    ours partial            the same with --partial-from 16M: blocks and attributes alone are copied up
    ours passthrough        the same with --passthrough, by root
    ours no keeper          the same with --no-keeper
    fuse-overlayfs, unionfs-fuse
    overlayfs               the kernel's, mounted by root
    overlayfs rootless      the kernel's, mounted in a user namespace
    btrfs snapshot          the lower is a subvolume, and a snapshot of it is changed: block by block
    thin snapshot           the same of a block device: the lower's filesystem is on a device of a thin pool
    reflink                 the file is copied by sharing its data (FICLONE), then changed: block by block
    copy                    the file is copied, then changed, as by a storage driver without copy-up (vfs)
    cp                      the same by the command `cp -p --reflink=auto`, its start included
    native                  a plain directory, with nothing mounted: the cost of the work itself

A FUSE daemon runs in the foreground as a child that dies with its parent, unless the time of its mount command is
measured. The measuring child mounts the rootless overlayfs in namespaces of its own, with which it vanishes. This
module reads mountinfo and never the mounted trees.
"""

from __future__ import annotations

import contextlib
import os
import platform
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from unionfs import compiled
from unionfs.bench import child, filesystems, first_write
from unionfs.bench.child import FailedError, die_with_parent
from unionfs.bench.filesystems import BranchFilesystem
from unionfs.bench.first_write import Fetch
from unionfs.bench.run_directory import detach
from unionfs.syscalls import mountinfo, mounts

_OUR_FILESYSTEM: Final = "fuse.unionfs"

OURS: Final = "ours"
OURS_PYFUSE3: Final = "ours, pyfuse3"
OURS_PARTIAL: Final = "ours, partial"
OURS_PASSTHROUGH: Final = "ours, passthrough"
OURS_WITHOUT_KEEPER: Final = "ours, no keeper"
FUSE_OVERLAYFS: Final = "fuse-overlayfs"
UNIONFS_FUSE: Final = "unionfs-fuse"
OVERLAYFS: Final = "overlayfs"
OVERLAYFS_ROOTLESS: Final = "overlayfs rootless"
SNAPSHOT: Final = "btrfs snapshot"
THIN_SNAPSHOT: Final = "thin snapshot"
REFLINK: Final = "reflink"
COPY: Final = "copy"
CP: Final = "cp"
NATIVE: Final = "native"

SYSTEMS: Final = (
    OURS,
    OURS_PARTIAL,
    OURS_PYFUSE3,
    FUSE_OVERLAYFS,
    UNIONFS_FUSE,
    OVERLAYFS,
    OVERLAYFS_ROOTLESS,
    SNAPSHOT,
    THIN_SNAPSHOT,
    REFLINK,
    COPY,
    CP,
)
"""The systems whose copy-up, or copy in its place, is measured, in the order of tables and pictures."""

COPYING: Final = (SNAPSHOT, THIN_SNAPSHOT, REFLINK, COPY, CP)
"""Systems that are no unions and have no layers."""

_OURS: Final = (OURS, OURS_PARTIAL, OURS_PYFUSE3, OURS_PASSTHROUGH, OURS_WITHOUT_KEEPER)
_SHARING: Final = ("btrfs", "xfs")  # filesystems on which copy_file_range(2) shares data instead of copying them
_FUSERMOUNT_S: Final = 20
_POLL_S: Final = 0.002


@dataclass(frozen=True, slots=True)
class Branches:
    """The directories of one session. `base` is a short path, so that hundreds of lowers fit into mount options."""

    base: Path
    lowers: Sequence[Path]  # top first

    def make(self) -> Branches:
        """Make the directories below `base`, on one filesystem, as overlayfs demands of upper and work. Return self."""
        for path in (self.upper, self.work, self.merged):
            path.mkdir(parents=True)
        return self

    @property
    def upper(self) -> Path:
        """The writable branch."""
        return self.base / "upper"

    @property
    def work(self) -> Path:
        """The work directory of the upper."""
        return self.base / "work"

    @property
    def merged(self) -> Path:
        """The mountpoint of the union."""
        return self.base / "merged"


@dataclass(frozen=True, slots=True)
class Mounted:
    """A system that shows the lowers in `merged`."""

    merged: Path
    upper: Path  # where changed files lie
    daemon: int | None = None  # pid; None: no process serves this system
    mount_s: float = 0.0  # from the start of the mount command until the mount was there
    fetch: Fetch | None = None  # copies a file before it is changed; only the systems that copy have it
    enter: Callable[[], None] | None = None  # the measuring child calls it before anything else


def why_missing(system: str) -> str | None:
    """Return why `system` cannot be measured on this machine; None: it can."""
    if system in (FUSE_OVERLAYFS, UNIONFS_FUSE, CP) and not shutil.which(system):
        return f"{system} is not installed"
    if system == THIN_SNAPSHOT:
        return filesystems.why_no_thin_pools()
    if system == OURS_PYFUSE3:
        from importlib.util import find_spec

        if find_spec("pyfuse3") is None:
            return "pyfuse3 is not installed"
    if system == OURS_PASSTHROUGH:
        release = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
        if release < (6, 9) or not filesystems.is_machine_root():
            return "only root of the machine has passthrough, since Linux 6.9"
    if system in (OVERLAYFS, OVERLAYFS_ROOTLESS):
        if not filesystems.kernel_has("overlay"):
            return "this kernel has no overlayfs"
        if system == OVERLAYFS and not filesystems.is_machine_root():
            return "only root mounts it"
        if system == OVERLAYFS_ROOTLESS and os.geteuid() != 0:
            return "this user may make no user namespace"
    if system in (*_OURS, FUSE_OVERLAYFS, UNIONFS_FUSE) and not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse is missing or closed to this user"
    return None


def why_not_on(system: str, filesystem: BranchFilesystem, *, may_reflink: bool) -> str | None:
    """Return why `system` cannot work on this filesystem; None: it can."""
    if system == SNAPSHOT and filesystem.fstype != "btrfs":
        return f"{filesystem.fstype} has no snapshots"
    if system == THIN_SNAPSHOT and filesystem.name != filesystems.THIN:
        return f"{filesystem.name} is not on a device of a thin pool"
    if system == SNAPSHOT and not shutil.which("btrfs"):
        return "btrfs-progs is not installed"
    if system == REFLINK and not may_reflink:
        return f"{filesystem.fstype} has no reflinks"
    return None


def version(system: str) -> str:
    """Return the version to print beside the figures of `system`; ours with its commit and the code that runs."""
    if system in _OURS:
        return f"{_our_release()} ({compiled.why_not_usable() or 'compiled'})"
    if system in (FUSE_OVERLAYFS, UNIONFS_FUSE):
        lines = _output([system, "--version"]).splitlines()
        return next((line.split()[-1] for line in lines if system in line and "version" in line), "unknown")
    return f"Linux {platform.release()}"


def _our_release() -> str:
    from importlib.metadata import PackageNotFoundError, version

    if (Path(compiled.CHECKOUT) / ".git").exists():
        with contextlib.suppress(OSError):
            return _output(["git", "-C", compiled.CHECKOUT, "describe", "--always", "--dirty"]).strip() or "unknown"
    try:
        return version("unionfs")
    except PackageNotFoundError:
        return "unknown"


def _output(argv: list[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20)
    return done.stdout + done.stderr


@contextlib.contextmanager
def mounted(system: str, branches: Branches, timeout_s: float, *, foreground: bool = True) -> Iterator[Mounted]:
    """Let `system` show the lowers; afterwards it is unmounted and its daemon has ended, also after an error.

    `timeout_s` limits its start, and its end. Without `foreground` a FUSE daemon is started as users start it: its
    mount command returns and leaves the daemon in the background.
    Raises: FailedError when it cannot be mounted or does not end in time.
    """
    if system in (COPY, REFLINK, CP):
        plain = first_write.copy
        if system == COPY and filesystems.fstype_of(branches.base) in _SHARING:
            plain = first_write.copy_apart
        fetch = {COPY: plain, REFLINK: first_write.reflink, CP: first_write.cp}[system]
        yield Mounted(branches.merged, branches.merged, fetch=fetch)
    elif system == SNAPSHOT:
        branches.merged.rmdir()
        if not filesystems.subvolume("snapshot", branches.lowers[0], branches.merged):
            raise FailedError("btrfs subvolume snapshot failed")
        yield Mounted(branches.merged, branches.merged)
    elif system == THIN_SNAPSHOT:
        root = branches.lowers[0].parent.parent  # BranchFilesystem.lowers is below it
        with filesystems.thin_snapshot(root, branches.merged):
            lower = branches.merged / branches.lowers[0].relative_to(root)
            yield Mounted(lower, lower)
    elif system == OVERLAYFS_ROOTLESS:
        yield Mounted(branches.merged, branches.upper, enter=lambda: _mount_rootless_overlay(branches))
    elif system == NATIVE:
        yield Mounted(branches.merged, branches.merged)
    else:
        with _mounted_by_command(system, branches, timeout_s, foreground and system != OVERLAYFS) as mount:
            yield mount


def _mount_argv(system: str, branches: Branches, foreground: bool) -> list[str]:
    upper, work, merged = map(os.fspath, (branches.upper, branches.work, branches.merged))
    lowers = list(map(os.fspath, branches.lowers))
    if system in _OURS:
        argv = [sys.executable, "-m", "unionfs", "mount", *(["--foreground"] if foreground else [])]
        argv += ["--transport", "pyfuse3" if system == OURS_PYFUSE3 else "kernel"]
        argv += ["--passthrough"] if system == OURS_PASSTHROUGH else []
        argv += ["--no-keeper"] if system == OURS_WITHOUT_KEEPER else []
        argv += ["--partial-from", "16M"] if system == OURS_PARTIAL else []
        for lower in lowers:
            argv += ["--lower", lower]
        return [*argv, "--upper", upper, "--work", work, merged]
    if system == OVERLAYFS:
        return ["mount", "-t", "overlay", "overlay", "-o", _overlay_options(branches), merged]
    argv = [system, *(["-f"] if foreground else []), "-o"]
    if system == FUSE_OVERLAYFS:
        return [*argv, f"lowerdir={':'.join(lowers)},upperdir={upper},workdir={work}", merged]
    branches_option = ":".join([f"{upper}=RW", *(f"{lower}=RO" for lower in lowers)])
    return [*argv, "cow", branches_option, merged]  # unionfs-fuse's word


def _overlay_options(branches: Branches) -> str:
    """The lowers by names relative to the parent of the topmost: all options must fit into one page."""
    lowers = ":".join(os.path.relpath(lower, branches.lowers[0].parent) for lower in branches.lowers)
    return f"lowerdir={lowers},upperdir={branches.upper},workdir={branches.work}"


@contextlib.contextmanager
def _mounted_by_command(system: str, branches: Branches, timeout_s: float, foreground: bool) -> Iterator[Mounted]:
    argv = _mount_argv(system, branches, foreground)
    merged = os.fspath(branches.merged)
    with (branches.base / "log").open("w+b") as log:
        earlier = _processes()
        began = time.perf_counter()
        command = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=branches.lowers[0].parent,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509  there is one thread
            env=_environment(),
        )
        try:
            _wait_until_mounted(command, argv[0], branches, timeout_s, foreground)
            mount_s = time.perf_counter() - began
            daemons = _daemons_of(merged, earlier, timeout_s)
            yield Mounted(branches.merged, branches.upper, daemons[0] if daemons else None, mount_s)
            child.call(lambda: _unmount(merged), timeout_s)
            if not all(_has_ended(pid, timeout_s) for pid in daemons):
                raise FailedError(f"{Path(argv[0]).name} does not end after its mount has gone")
        finally:
            left = _daemons_of(merged, earlier)
            while mountinfo.topmost_at(merged) is not None:
                detach(branches.merged)
            if command.returncode is None:  # not reaped, so the number is still its own
                os.killpg(command.pid, signal.SIGKILL)
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            command.wait()


def _environment() -> dict[str, str]:
    """Our environment without the defaults that users set, in which every working directory finds the same
    `unionfs`."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("UNIONFS_")}
    env["LIBMOUNT_FORCE_MOUNT2"] = "always"  # fsconfig(2) takes no option of more than 256 bytes
    if Path(compiled.CHECKOUT).name != "site-packages":
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (compiled.CHECKOUT, env.get("PYTHONPATH"))))
    return env


def _wait_until_mounted(
    command: subprocess.Popen[bytes], name: str, branches: Branches, timeout_s: float, foreground: bool
) -> None:
    """In the foreground until mountinfo has the mount, else until the command has returned."""
    deadline = time.monotonic() + timeout_s
    while True:
        ended = _has_ended(command.pid, _POLL_S if foreground else timeout_s)
        is_mounted = mountinfo.topmost_at(os.fspath(branches.merged)) is not None
        if ended and (foreground or command.wait() != 0 or not is_mounted):
            said = (branches.base / "log").read_text(errors="replace").strip()
            raise FailedError(f"{Path(name).name} ended: {said[-300:] or command.wait()}")
        if is_mounted and (foreground or ended):
            return
        if time.monotonic() > deadline:
            raise FailedError(f"{Path(name).name} has mounted nothing within {timeout_s:g} s")


def _has_ended(pid: int, timeout_s: float) -> bool:
    """Wait for the end of a process, a child or not. Returns whether it has ended in time."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], timeout_s)[0])
    finally:
        os.close(fd)


def _processes() -> set[int]:
    return {int(name) for name in os.listdir("/proc") if name.isdecimal()}


def _daemons_of(merged: str, earlier: set[int], timeout_s: float = 0.0) -> list[int]:
    """The processes that serve `merged`, of those that are not `earlier`: a daemon or its helper that is still ending
    may have the number of this connection. Ours has the connection's number as its name, and is waited for: its keeper
    forks it a moment after the mount. Others have `merged` as an argument, which those that start a daemon, and our
    keepers, have, too. Other filesystems may have the number of a connection that has ended before its daemon."""
    wanted, mount = os.fsencode(merged), mountinfo.topmost_at(merged)
    name = f"unionfs:{mount.minor}\n" if mount is not None and mount.fstype == _OUR_FILESYSTEM else None
    deadline = time.monotonic() + timeout_s
    while True:
        named, found = [], []
        for pid in sorted(_processes() - earlier):  # a daemon before the helpers that it forks
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text() == name:
                    named.append(pid)
                if wanted in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                    found.append(pid)
        if named or name is None or time.monotonic() > deadline:
            return named or found
        time.sleep(_POLL_S)


def _unmount(merged: str) -> None:
    try:
        mounts.umount2(merged, mounts.UMOUNT_NOFOLLOW)
    except PermissionError:
        subprocess.run(["fusermount3", "-u", merged], check=False, capture_output=True, timeout=_FUSERMOUNT_S)
    except OSError as why:
        raise FailedError(f"unmounting failed: {why.strerror}") from None


def _mount_rootless_overlay(branches: Branches) -> None:
    """Mount the kernel's overlayfs in new namespaces of this process. Raises: OSError."""
    child.unshare_mounts(in_user_namespace=True)
    os.chdir(branches.lowers[0].parent)
    mounts.mount("overlay", os.fspath(branches.merged), "overlay", 0, _overlay_options(branches) + ",userxattr")
