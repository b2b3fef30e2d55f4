"""The kernel's own overlayfs over the same layers: a second oracle, where one may mount it.

Mounts in a child that has a mount namespace of its own, so nothing can be left behind, and returns what the child saw.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import stat
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.core.children import expect, in_child
from tests.core.drivers import Path as RelPath
from tests.core.native import Native
from tests.support.timing import limit

_CLONE_NEWNS = 0x00020000
_libc = ctypes.CDLL(None, use_errno=True)


class Mounted(Native):
    """A kernel overlay. In a directory that is not merged it lists whiteouts too, which cannot be found: left out. The
    union's private attributes mean nothing to it, so it shows them: left out as well."""

    def listing(self, path: RelPath) -> dict[bytes, tuple[int, int]]:
        found = {}
        for name in os.listdir(self.at(path)):
            with contextlib.suppress(FileNotFoundError):
                info = os.lstat(os.path.join(self.at(path), name))
                found[name] = stat.S_IFMT(info.st_mode), info.st_ino
        return found

    def listxattr(self, path: RelPath) -> list[bytes]:
        return [name for name in super().listxattr(path) if not name.startswith(b"user.unionfs.")]


class Overlay:
    """Options of one mount. `work` and `upper` are None for a read-only one."""

    def __init__(
        self, lowers: Sequence[Path], upper: Path | None = None, work: Path | None = None, *, trusted: bool = True
    ) -> None:
        self.options = "lowerdir=" + ":".join(str(lower).replace(":", "\\:") for lower in lowers)
        if upper is not None:
            self.options += f",upperdir={upper},workdir={work}"
        self.options += ",redirect_dir=on,metacopy=off,index=off" if trusted else ",userxattr"

    def run(self, function: Callable[[Native], object]) -> object:
        """Mount, call `function` with a driver on the mount in a child, unmount, and return its value."""

        def child() -> object:
            with tempfile.TemporaryDirectory(prefix="overlay") as where:
                private_namespace()
                mount("overlay", where, self.options)
                try:
                    return function(Mounted(Path(where)))
                finally:
                    subprocess.run(["umount", "-l", where], check=True, timeout=limit(30))

        return expect(in_child(child))


def private_namespace() -> None:
    """Keep the mounts of this process to itself (unshare(2), CLONE_NEWNS)."""
    if _libc.unshare(_CLONE_NEWNS) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True, timeout=limit(30))


def mount(fstype: str, where: str, options: str) -> None:
    """mount(8) of a filesystem without a device."""
    done = subprocess.run(
        ["mount", "-t", fstype, "-o", options, "none", where],
        capture_output=True,
        text=True,
        timeout=limit(30),
        check=False,
    )
    if done.returncode != 0:
        raise OSError(done.stderr.strip())


@functools.cache
def why_not() -> str | None:
    """Why the kernel's overlayfs cannot be used here, or None."""
    if os.geteuid() != 0:
        return "needs root: mounting the kernel's overlayfs"
    with tempfile.TemporaryDirectory(prefix="overlay") as scratch:
        parts = [Path(scratch) / name for name in ("l", "u", "w")]
        for part in parts:
            part.mkdir()
        outcome = in_child(lambda: Overlay([parts[0]], parts[1], parts[2]).run(lambda seen: seen.mkdir("d")))
    return (
        None
        if outcome.error is None
        else f"the kernel's overlayfs cannot be mounted on this filesystem: {outcome.error.splitlines()[-1]}"
    )
