"""Directories for tests on a real disk filesystem, and the removal of the remains of aborted runs.

/tmp is a tmpfs on many machines and pytest's own directories are closed to other users; a union wants a filesystem
with xattrs, holes and stable inode numbers that an ordinary user may enter. So everything lies below one base
directory, `$UNIONFS_TEST_DIR` or /var/tmp/unionfs-tests-UID.

Each run has a directory of its own, with a lock held while the run lives. A run directory whose lock is free belongs
to a run that died: the processes that name it on their command lines are ended, its users and mounts removed, then the
directory. Runs at the same time leave each other alone.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support import users
from tests.support.mountinfo import unmount_below
from tests.support.timing import limit

_RUN_PREFIX = "run-"
_LOCK_SUFFIX = ".lock"


def base_dir() -> Path:
    """The directory that contains those of the runs. Belongs to the current user; others may enter it."""
    base = Path(os.environ.get("UNIONFS_TEST_DIR") or f"/var/tmp/unionfs-tests-{os.geteuid()}")
    base.mkdir(mode=0o755, exist_ok=True)
    status = os.lstat(base)
    if base.is_symlink() or status.st_uid != os.geteuid():
        raise PermissionError(f"{base} is not a directory of the current user; set UNIONFS_TEST_DIR to another one")
    base.chmod(0o755)
    return base.resolve()


@contextmanager
def run_dir() -> Iterator[Path]:
    """The directory of this run. At the end it is removed, with all processes and mounts in it."""
    run = Path(tempfile.mkdtemp(prefix=_RUN_PREFIX, dir=base_dir()))
    run.chmod(0o755)
    lock_fd = os.open(_lock_of(run), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock_fd, fcntl.LOCK_EX)
    try:
        yield run
    finally:
        _bury(run)
        os.close(lock_fd)


def sweep_dead_runs() -> list[str]:
    """Remove the remains of runs that did not end properly, and return a description of them."""
    swept = []
    for lock in base_dir().glob(f"{_RUN_PREFIX}*{_LOCK_SUFFIX}"):
        if _is_held(lock):
            continue
        run = lock.with_suffix("")
        ended, gone = _bury(run)
        swept.append(f"{run} ({gone} mounts, {ended} processes)")
    return swept


def processes_below(run: Path) -> dict[int, str]:
    """The processes that were started with a path below `run`, such as daemons and containers: pid -> command line."""
    found = {}
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            command = cmdline.read_bytes()
            if os.fsencode(f"{run}/") in command:
                found[int(cmdline.parent.name)] = command.replace(b"\0", b" ").decode(errors="replace").strip()
    return found


def make_shared(directory: Path) -> None:
    """Make `directory` a shared mount, as / is with systemd: then an unmount below it reaches the mount namespaces that
    other programs, such as podman, have made meanwhile. Does nothing unless we are root; `remove` undoes it."""
    if os.geteuid() == 0:
        for argv in (["--bind", os.fspath(directory), os.fspath(directory)], ["--make-shared", os.fspath(directory)]):
            subprocess.run(["mount", *argv], check=True, timeout=limit(60))


def remove(tree: Path) -> None:
    """Remove `tree`, also with mounts, paths longer than PATH_MAX and files of subordinate user ids in it."""
    unmount_below(tree)
    command = ["rm", "-rf", "--one-file-system", "--", os.fspath(tree)]
    if subprocess.run(command, capture_output=True, timeout=limit(300), check=False).returncode == 0:
        return
    if os.geteuid() != 0 and shutil.which("unshare"):
        # Files of our subordinate ids can be removed only from inside a namespace that maps them.
        command = ["unshare", "--map-root-user", "--map-auto", "--", *command]
        subprocess.run(command, capture_output=True, timeout=limit(300), check=False)


def _bury(run: Path) -> tuple[int, int]:
    """Remove all remains of a run. Returns the numbers of processes and mounts. The lock is removed last, if all else
    was."""
    ended = users.remove_accounts_below(run) | processes_below(run)
    for pid in ended:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    gone = unmount_below(run)
    remove(run)
    if not run.exists():
        _lock_of(run).unlink(missing_ok=True)
    return len(ended), len(gone)


def _lock_of(run: Path) -> Path:
    return run.with_name(run.name + _LOCK_SUFFIX)


def _is_held(lock: Path) -> bool:
    """Whether a live run holds `lock`. A lock that vanishes meanwhile counts as held: another run removes it."""
    try:
        lock_fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(lock_fd)
