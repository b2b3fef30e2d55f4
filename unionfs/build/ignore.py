"""The file with the patterns of names that are left out of a context: .containerignore, or .dockerignore.

Sources: docker build reference, ".dockerignore files"; containerignore(5). FILE.dockerignore beside the Containerfile
FILE comes first (docker), then .containerignore (podman), then .dockerignore.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from unionfs.build.patterns import PatternError, Patterns
from unionfs.containers.errors import ContainerError
from unionfs.trees.open_beneath import open_in_root

_NAMES: Final = (".containerignore", ".dockerignore")
_LARGEST: Final = 4 << 20


def of_context(root_fd: int, containerfile: str, named: str = "", *, is_foreign: bool = False) -> Patterns:
    """The patterns of the context at `root_fd`; `named` is the file of --ignorefile. `containerfile` is a host path,
    or with `is_foreign` a path within the context. Raises: ContainerError."""
    if named:
        with open(named, "rb") as file:
            return _parsed(file.read(_LARGEST), named)
    beside_it = [containerfile + suffix for suffix in _NAMES] if containerfile else []
    for beside in () if is_foreign else beside_it:
        if os.path.isfile(beside):
            with open(beside, "rb") as file:
                return _parsed(file.read(_LARGEST), beside)
    for name in (*(beside_it if is_foreign else ()), *_NAMES):
        try:
            fd = open_in_root(root_fd, name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                continue
            raise
        with open(fd, "rb") as file:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                return _parsed(file.read(_LARGEST), name)
    return Patterns(())


def _parsed(data: bytes, name: str) -> Patterns:
    """A comment is a line that begins with #, without a blank before it."""
    lines = data.removeprefix(b"\xef\xbb\xbf").decode(errors="surrogateescape").split("\n")
    try:
        return Patterns(line for line in lines if not line.startswith("#"))
    except PatternError as error:
        raise ContainerError("reading the ignore file", name, str(error)) from error
