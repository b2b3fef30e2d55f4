"""Mount a union through the command line, and ensure that it is unmounted afterwards.

All is done in child processes with timeouts. At the end comes `unionfs umount`; if that fails, the mount is detached
lazily and the failure is raised, so a test can neither leave a mount nor hide that it would have left one. The daemon's
log is checked as that of the tests: a warning that was not announced is a failure.
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.mountinfo import detach, mount_at
from tests.support.process import ChildError
from tests.support.users import CHECKOUT, User

_MODULE_OF = {"pyfuse3": "unionfs/fuse/via_pyfuse3.py", "kernel": "unionfs/fuse/kernel/server.py"}

TRANSPORTS = tuple(_MODULE_OF)
"""The transports; `native` beside them is a plain directory, the control of the suite."""

_RECORD_START = re.compile(r"^(?=\d{4}-\d\d-\d\d \S+ [A-Z]+ )", re.MULTILINE)
_COMPLAINT = re.compile(r"\S+ \S+ (WARNING|ERROR|CRITICAL) |(?!\d{4}-\d\d-\d\d )(?=.*\S)")
"""A record of that level; or text before the first record, which no program should have written to stderr."""


def has_transport(name: str) -> bool:
    """Whether this version of the project has the transport."""
    return (CHECKOUT / _MODULE_OF[name]).exists()


@contextmanager
def mounted(
    lowers: Sequence[Path],
    mountpoint: Path,
    *,
    user: User,
    transport: str,
    upper: Path | None = None,
    work: Path | None = None,
    options: Sequence[str] = (),
    expected_log: str | None = None,
) -> Iterator[Path]:
    """`unionfs mount` the branches (lowers top first) at `mountpoint` as `user`; unmount at the end.

    `expected_log` is a pattern (re.search) for warnings that the daemon may log.
    Raises: ChildError when mounting or unmounting fails, when the mount died in between, or when the daemon complained.
    """
    log = user.home / f"daemon-{secrets.token_hex(4)}.log"
    argv = mount_argv(
        lowers,
        mountpoint,
        user=user,
        transport=transport,
        upper=upper,
        work=work,
        options=[*options, "--log", os.fspath(log)],
    )
    user.run(argv, timeout_s=30)
    try:
        if mount_at(mountpoint) is None:
            raise ChildError(f"`unionfs mount` said it is ready, but nothing is mounted at {mountpoint}")
        yield mountpoint
        umount(mountpoint, user)
    except BaseException as failure:
        failure.add_note("the daemon's log:\n" + ("\n".join(complaints(log)) or "nothing to complain about"))
        raise
    finally:
        while mount_at(mountpoint) is not None:
            detach(mountpoint)
    unexpected = complaints(log, expected_log)
    if unexpected:
        raise ChildError("unexpected in the daemon's log:\n" + "\n".join(unexpected))


def complaints(log: Path, expected: str | None = None) -> list[str]:
    """The warnings and errors in a daemon's log (`--log`), with tracebacks, except those that match `expected`."""
    if not log.exists():
        return []
    records = _RECORD_START.split(log.read_text(errors="replace"))
    found = [record.rstrip() for record in records if _COMPLAINT.match(record)]
    return [record for record in found if expected is None or not re.search(expected, record)]


def mount_argv(
    lowers: Sequence[Path],
    mountpoint: Path,
    *,
    user: User,
    transport: str,
    upper: Path | None = None,
    work: Path | None = None,
    options: Sequence[str] = (),
) -> list[str]:
    """The command line with which `mounted` mounts."""
    argv = [*user.unionfs_cmd, "mount", "--transport", transport]
    for lower in lowers:
        argv += ["--lower", os.fspath(lower)]
    if upper is not None:
        argv += ["--upper", os.fspath(upper)]
    if work is not None:
        argv += ["--work", os.fspath(work)]
    return [*argv, *options, os.fspath(mountpoint)]


def umount(mountpoint: Path, user: User) -> subprocess.CompletedProcess[str]:
    """`unionfs umount`, and a check of its effect. Raises: ChildError when it fails or a filesystem is still mounted
    there."""
    done = user.unionfs("umount", mountpoint, timeout_s=30)
    if mount_at(mountpoint) is not None:
        raise ChildError(f"`unionfs umount` succeeded, but {mountpoint} is still mounted")
    return done
