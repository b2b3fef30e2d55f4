"""Make the n-th step that changes a filesystem fail, or be the last thing this process does.

A step is a call of a mutating function of `os` or of `unionfs.syscalls.files`: nothing else changes the branches.
Patches the process it runs in, so it belongs into a child (children.in_child).
"""

from __future__ import annotations

import errno
import os
import sys
import types
from collections.abc import Callable
from typing import Literal

from tests.core.children import KILLED
from unionfs.syscalls import files

Fault = Literal["count", "fail", "full", "dead", "kill"]
"""count: nothing fails. fail: the n-th step does (ENOSPC). full: from the n-th on, steps that need space do (ENOSPC),
others work. dead: from the n-th on, every step fails (EIO). kill: the process ends before the n-th step."""

_ALLOCATING = frozenset(
    (
        "link",
        "symlink",
        "mkdir",
        "mknod",
        "setxattr",
        "write",
        "pwrite",
        "copy_file_range",
        "open",
        "fallocate",
        "ficlone",
    )
)
_OTHERS = frozenset(
    (
        "rename",
        "unlink",
        "rmdir",
        "removexattr",
        "chown",
        "fchown",
        "lchown",
        "chmod",
        "fchmod",
        "utime",
        "truncate",
        "ftruncate",
        "fsync",
        "fdatasync",
    )
)
_NOT_STEPS = frozenset(("openat2", "syncfs", "get_flags", "inode_flags", "protection_in"))


class Faults:
    """Counts steps from `arm` on."""

    def __init__(self) -> None:
        self.steps = 0
        self.log: list[str] = []
        self._armed = False
        self._fault: Fault = "count"
        self._at = 0

    def install(self) -> None:
        """Wrap the functions wherever they have been imported."""
        wrapped: dict[int, Callable[..., object]] = {}
        for name in _ALLOCATING | _OTHERS:
            self._add(wrapped, name, getattr(os, name, None))
        for name, value in vars(files).items():
            if isinstance(value, types.FunctionType) and not name.startswith("_") and name not in _NOT_STEPS:
                self._add(wrapped, name, value)
        ours = [module for name, module in list(sys.modules.items()) if name.startswith("unionfs.")]
        for module in (os, *ours):
            for key, value in list(vars(module).items()):
                if id(value) in wrapped:
                    setattr(module, key, wrapped[id(value)])

    def _add(
        self, wrapped: dict[int, Callable[..., object]], name: str, function: Callable[..., object] | None
    ) -> None:
        if function is not None:
            wrapped[id(function)] = self._wrap(name, function)

    def arm(self, fault: Fault, at: int) -> None:
        self._fault, self._at, self.steps, self._armed = fault, at, 0, True

    def disarm(self) -> None:
        self._armed = False

    def _wrap(self, name: str, original: Callable[..., object]) -> Callable[..., object]:
        def step(*args: object, **kwargs: object) -> object:
            if not self._armed or (name == "open" and not _creates(args, kwargs)):
                return original(*args, **kwargs)
            self.steps += 1
            self.log.append(name)
            if self._fault == "kill" and self.steps == self._at:
                os._exit(KILLED)
            if self._fault == "fail" and self.steps == self._at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if self._fault == "full" and self.steps >= self._at and name in _ALLOCATING:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if self._fault == "dead" and self.steps >= self._at:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            # What a wrapped function calls on its way is part of this step.
            self._armed = False
            try:
                return original(*args, **kwargs)
            finally:
                self._armed = True

        return step


def _creates(args: tuple[object, ...], kwargs: dict[str, object]) -> bool:
    flags = args[1] if len(args) > 1 else kwargs.get("flags", 0)
    return isinstance(flags, int) and bool(flags & os.O_CREAT or flags & os.O_TMPFILE == os.O_TMPFILE)
