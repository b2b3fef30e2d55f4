"""Make the core's options of the caller's arguments, with the work directory beside the upper by default."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final, Literal

from unionfs.api.paths import StrPath
from unionfs.core.options import Options, make_work

Whiteouts = Literal["aufs", "overlay", "fuse-overlayfs"]
Durability = Literal["strict", "normal", "volatile"]

_NAMES_MAX: Final = 100_000  # limit of remembered directory names, some 200 bytes each
_FDS_MAX: Final = 64  # limit of cached descriptors


def paths_of(lowers: Iterable[StrPath]) -> tuple[str, ...]:
    """The lowers as absolute paths. Raises: TypeError for one path instead of a list."""
    if isinstance(lowers, (str, bytes, os.PathLike)):
        raise TypeError("lowers must be a list of directories, the topmost first, not one path")
    return tuple(absolute(lower) for lower in lowers)


def absolute(path: StrPath) -> str:
    """An absolute host path: the process may change its working directory."""
    return os.path.abspath(os.fsdecode(path))


def options_of(
    lowers: Iterable[StrPath],
    upper: StrPath | None,
    work: StrPath | None,
    whiteout: Whiteouts,
    durability: Durability,
    *,
    in_process: bool = False,
) -> tuple[Options, str | None]:
    """The options, and the work directory if it was made. `in_process`: for a union in the caller's process, whose
    umask and limit of descriptors it must respect. Raises: OptionError."""
    below = paths_of(lowers)
    above = None if upper is None else absolute(upper)
    place = None if work is None else absolute(work)
    made = None
    if above is not None and place is None:
        place, is_new = make_work(above)
        made = place if is_new else None
    options = Options(
        lowers=below, upper=above, work=place, whiteout=whiteout, durability=durability, overrides_shared=True
    )
    if in_process:
        options = options._replace(keeps_umask=True, names_limit=_NAMES_MAX, fds_limit=_FDS_MAX)
    return options, made


def forget_work(made: str | None) -> None:
    """Remove a work directory that was made for a union that then failed to open, with its content."""
    if made is not None:
        from shutil import rmtree

        rmtree(made, ignore_errors=True)
