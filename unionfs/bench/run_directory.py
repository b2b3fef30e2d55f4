"""Make the directory of a run, and remove the remains of dead runs.

Each run has a directory of its own below the base, with a lock that is held while the run lives: a directory whose lock
is free belongs to a run that died. Its mounts are detached without being accessed, then it is removed. The filesystem
images and mounts of `unionfs bench` vanish by themselves, since they live in a mount namespace of the run.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from unionfs.syscalls import mountinfo, mounts

_PREFIX: Final = "run-"
_LOCK: Final = ".lock"
_OPTIONS_END: Final = set(",:\\")
_REMOVING_S: Final = 300
_LOOPS_S: Final = 10
_REMOVED_AT_ONCE: Final = 1 << 20  # bytes


def base(directory: str | None) -> Path:
    """Return where runs have their directories: below `directory`, else /var/tmp. Raises: OSError."""
    path = Path(directory or "/var/tmp").absolute() / f"unionfs-bench-{os.geteuid()}"
    if set(os.fspath(path)) & _OPTIONS_END:
        raise OSError(errno.EINVAL, "mount options cannot hold a comma, a colon or a backslash", os.fspath(path))
    path.mkdir(mode=0o755, parents=True, exist_ok=True)
    if path.is_symlink() or path.lstat().st_uid != os.geteuid():
        raise PermissionError(1, "not a directory of the current user", os.fspath(path))
    return path.resolve()


@contextlib.contextmanager
def run_directory(where: Path) -> Iterator[Path]:
    """Make a directory for one run; remove it afterwards with all its mounts. Sweeps dead runs first."""
    sweep(where)
    run = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=where))
    lock = os.open(run.with_name(run.name + _LOCK), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        run.chmod(0o755)
        yield run
    finally:
        _bury(run)
        os.close(lock)
        with contextlib.suppress(OSError):
            where.rmdir()  # fails if another run is there


def sweep(where: Path) -> list[Path]:
    """Remove the remains of dead runs; return their directories."""
    swept = []
    for lock in where.glob(f"{_PREFIX}*{_LOCK}"):
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            finally:
                os.close(fd)
            swept.append(lock.with_name(lock.name.removesuffix(_LOCK)))
            _bury(swept[-1])
    return swept


def put_aside(base: Path, root: Path) -> None:
    """Make room for the next session: move the directory `base` of a session to `root`/done until the run ends.

    ext4 does not give out the number of an inode again within minutes of its removal, and looks at every such number
    first: after a tree was removed, creating a file takes 20 times as long. Large files are few, and go at once.
    """
    for directory, _, names in os.walk(base):
        for name in names:
            path = f"{directory}/{name}"
            with contextlib.suppress(OSError):
                if os.lstat(path).st_size >= _REMOVED_AT_ONCE:
                    os.unlink(path)
    aside = root / "done"
    aside.mkdir(exist_ok=True)
    with contextlib.suppress(OSError):
        base.rename(aside / str(len(os.listdir(aside))))
        return
    shutil.rmtree(base, ignore_errors=True)


def _bury(run: Path) -> None:
    """Remove a run's directory, and its lock only when all else is gone."""
    for mount in reversed(mountinfo.mounts()):
        place = Path(mount.mountpoint)
        if place == run or run in place.parents:
            detach(place)
    _wait_for_loops(run)
    shutil.rmtree(run, ignore_errors=True)
    if run.exists():  # names that Python's walk cannot reach, files of other owners
        subprocess.run(
            ["rm", "-rf", "--one-file-system", "--", os.fspath(run)],
            check=False,
            capture_output=True,
            timeout=_REMOVING_S,
        )
    if not run.exists():
        run.with_name(run.name + _LOCK).unlink(missing_ok=True)


def _wait_for_loops(run: Path) -> None:
    """Wait until no loop device has a file of the run: a killed worker's namespace ends a moment later."""
    deadline = time.monotonic() + _LOOPS_S
    while time.monotonic() < deadline:
        names = []
        for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
            with contextlib.suppress(OSError):
                names.append(backing.read_text())
        if not any(name.startswith(f"{run}/") for name in names):
            return
        time.sleep(0.02)


def detach(place: Path) -> None:
    """Unmount lazily, without accessing the mounted tree. No error if nothing is mounted there."""
    try:
        mounts.umount2(os.fspath(place), mounts.MNT_DETACH | mounts.UMOUNT_NOFOLLOW)
    except PermissionError:
        with contextlib.suppress(OSError):
            argv = ["fusermount3", "-u", "-z", os.fspath(place)]
            subprocess.run(argv, check=False, capture_output=True, timeout=20)
    except OSError:
        pass
