"""Mount a union for all programs, from a Python program: a daemon serves it, as with `unionfs mount`.

The daemon is neither this process nor its child: a fresh interpreter (`starter`) starts it.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

from unionfs.api.arguments import Durability, Whiteouts, absolute, forget_work, options_of
from unionfs.api.paths import StrPath
from unionfs.core.options import Options
from unionfs.fuse import mounting, unmounting
from unionfs.fuse.mounting import MountError
from unionfs.syscalls.mountinfo import Mount

_CODE: Final = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from unionfs import compiled
compiled.use_compiled()
from unionfs.api import starter
starter.main()
"""
_lifelines: dict[int, int] = {}  # FUSE connection -> lifeline: a descriptor whose end makes the daemon unmount


class Mounted:
    """A mounted union. As a context manager it is unmounted at the end of the block."""

    def __init__(self, mountpoint: str, pid: int, connection: int) -> None:
        self.mountpoint: Final = mountpoint  # absolute, free of symlinks
        self.pid: Final = pid  # of its daemon
        self._connection: Final = connection

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.unmount()
            return
        try:
            self.unmount()
        except MountError:
            with suppress(MountError):  # the caller must see the exception of the block
                self.unmount(lazy=True)

    def __repr__(self) -> str:
        return f"<Mounted {self.mountpoint!r}, served by process {self.pid}>"

    @property
    def is_mounted(self) -> bool:
        """Whether the union is still mounted at its mountpoint. Sends the daemon no request."""
        return self._seen() is not None

    def _seen(self) -> Mount | None:
        there = mounting.union_at(self.mountpoint)
        return there if there is not None and there.minor == self._connection else None

    def unmount(self, *, lazy: bool = False) -> None:
        """Unmount the union and wait until its daemon has ended; no effect if it is already unmounted. `lazy`: detach
        it although it is in use. Its daemon serves open files until they are closed or this process ends.

        Raises: MountError: EBUSY while it is in use, ETIMEDOUT if its daemon does not end.
        """
        if self.is_mounted:
            unmounting.unmount(self.mountpoint, lazy=lazy)
        if not lazy:
            _close_lifeline(self._connection)

    def stats(self) -> dict[str, Any]:
        """The statistics of the daemon: the object that `unionfs stats --json` prints. Raises: MountError: ENOTCONN."""
        from unionfs.control.client import NoAnswerError, add_mounts, ask

        why = "its daemon has ended"
        there = self._seen()
        if there is not None:
            try:
                for found in ask(there.minor, "stats", there.user_id):
                    add_mounts(found, there)
                    return found
            except NoAnswerError as error:
                why = str(error)
        raise MountError("stats", self.mountpoint, why, code=errno.ENOTCONN)


def mount(
    lowers: Iterable[StrPath],
    mountpoint: StrPath,
    *,
    upper: StrPath | None = None,
    work: StrPath | None = None,
    whiteout: Whiteouts = "aufs",
    durability: Durability = "normal",
    read_only: bool = False,
    allow_other: bool | None = None,
    watch: bool = False,
    stay: bool = False,
    log: StrPath | None = None,
) -> Mounted:
    """Mount the union of lower directories, the topmost first, and at most one upper at an existing directory.

    The union can be used when this returns. It is unmounted by `Mounted`, or when this process ends, even if it is
    killed; with `stay` by `Mounted` or `unionfs umount`. `allow_other` lets other users access it (default: only if
    root mounts). With `watch`, changes that other programs make to the branches show on the mount. `log`: a file for
    messages of the daemon. The other options are those of Union.

    Raises: MountError (EBUSY if another union has the upper for writing, or one is mounted there), OptionError.
    """
    options, made = options_of(lowers, upper, work, whiteout, durability)
    settings = {
        "mountpoint": absolute(mountpoint),
        "read_only": read_only or upper is None,
        "allow_other": allow_other,
        "watch": watch,
        "log": None if log is None else absolute(log),
    }
    try:
        return _start(options, settings, stay=stay)
    except BaseException:
        forget_work(made)
        raise


def _start(options: Options, settings: dict[str, Any], *, stay: bool) -> Mounted:
    ours, theirs = -1, -1
    try:
        if not stay:
            theirs, ours = os.pipe()
        answer = _ask_starter(options, {**settings, "lifeline_fd": None if stay else theirs}, theirs)
        for warning in answer["warnings"]:
            warnings.warn(warning, RuntimeWarning, stacklevel=4)
        mountpoint = mounting.resolve_mountpoint(settings["mountpoint"])
        there = mounting.union_at(mountpoint)
        if there is None:
            raise MountError("mount", settings["mountpoint"], "it was unmounted at once", code=errno.ENOTCONN)
        _close_lifeline(there.minor)  # the lifeline of an earlier, ended mount with this number
        if not stay:
            _lifelines[there.minor], ours = ours, -1
        return Mounted(mountpoint, answer["pid"], there.minor)
    finally:
        for fd in (ours, theirs):
            if fd >= 0:
                os.close(fd)  # closes the lifeline, so that a daemon that was started unmounts


def _close_lifeline(connection: int) -> None:
    fd = _lifelines.pop(connection, None)
    if fd is not None:
        os.close(fd)


def _ask_starter(options: Options, settings: dict[str, Any], lifeline_fd: int) -> dict[str, Any]:
    """Have the daemon started. Raises: MountError."""
    fields = ("lowers", "upper", "work", "whiteout", "durability", "overrides_shared")
    union = {name: getattr(options, name) for name in fields}
    done = subprocess.run(
        [sys.executable, "-E", "-c", _CODE, json.dumps([os.path.abspath(entry) for entry in sys.path])],
        input=json.dumps({**settings, "union": union}).encode(),
        capture_output=True,
        pass_fds=(lifeline_fd,) if lifeline_fd >= 0 else (),
        start_new_session=True,  # Ctrl-C is for this program only, which then closes the lifeline
        check=False,
    )
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        why = f"the daemon could not be started: {said[-1] if said else f'exit code {done.returncode}'}"
        raise MountError("mount", settings["mountpoint"], why, code=errno.EIO) from None
    if "failed" in answer:
        prefix = f"mount failed: {settings['mountpoint']}: "
        why = answer["failed"].removeprefix(prefix)
        raise MountError("mount", settings["mountpoint"], why, code=answer["code"] or errno.EIO, hint=answer["hint"])
    return answer
