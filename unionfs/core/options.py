"""The options of a union: branches and policies, as frozen values, and checks that open no branch for use."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from unionfs.core.owners import OwnerTranslation

WHITEOUT_FORMATS: Final = ("aufs", "overlay", "fuse-overlayfs")
DURABILITIES: Final = ("strict", "normal", "volatile")
OVERRIDES: Final = ("", "user", "privileged")
PARTIAL_FROM: Final = 16 << 20
"""The usual value of Options.partial_from."""
LOWERS_MAX: Final = 65535
"""More lowers than this are refused: a branch's position must fit the packed names of core.lower. The kernel allows
500."""


class OptionError(OSError):
    """The union cannot be made from these branches. `str()` is a message for the user, `errno` the nearest errno."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)
        self.message = message  # immutable

    def __str__(self) -> str:
        return self.message


class _Options(NamedTuple):
    """The fields of Options."""

    lowers: tuple[str, ...]
    upper: str | None = None  # None: a read-only union
    work: str | None = None  # needed with upper, on the same mount
    whiteout: str = "aufs"  # the dialect that is written; all are read
    durability: str = (
        "normal"  # strict: copy-ups are on the device before they are visible; volatile: fsync does nothing
    )
    unmapped_as_root: bool = False  # owners of lower files that this user namespace does not know are shown as root
    owners: OwnerTranslation | None = None  # the translation of owners; None: no translation
    overrides: str = ""  # upper keeps owners, modes and types in attributes: "user" or "privileged" ones; "": on disk
    overrides_shared: bool = False  # files with overrides have mode 0755 or more on disk, so all users can read them
    owners_kept: bool = False  # owners that are not shown can be set and read by markers.OWNER_XATTR
    skip_unreadable: bool = False  # lower directories that may not be read show as empty instead of failing
    atime: bool = True  # reading changes access times of upper files as their filesystem does; False: never
    static_nlink: bool = False  # directories show one link
    hidden: tuple[str, ...] = ()  # host paths that are shown as empty directories if a lower contains them
    without_xattrs: tuple[str, ...] = ()  # lowers of which no file has extended attributes: they are asked for none
    names_limit: int = 1_000_000  # directory names remembered at most, some 200 bytes each
    fds_limit: int | None = None  # descriptors cached at most; None: a part of what RLIMIT_NOFILE leaves
    passthrough: bool = False  # the kernel itself reads and writes the branches' files; needs CAP_SYS_ADMIN
    metacopy: bool = False  # a change of attributes or names alone copies no data up, where they cannot be shared
    partial_from: int = 0  # size from which a write to a lower file copies only the blocks it changes; 0: never
    keeps_umask: bool = False  # the process's umask is never changed; `Caller.umask` must be that umask


class Options(_Options):
    """Branches and policies of one union. Paths are host paths; lowers stand top first.

    Raises OptionError for combinations that can never work.
    """

    __slots__ = ()

    if not TYPE_CHECKING:  # its signature is that of the fields

        def __new__(cls, *values: Any, **named: Any) -> Self:
            options = super().__new__(cls, *values, **named)
            options._check()
            return options

    def _check(self) -> None:
        if not self.lowers:
            raise OptionError(errno.EINVAL, "no lower directory given")
        if len(self.lowers) > LOWERS_MAX:
            raise OptionError(errno.E2BIG, f"{len(self.lowers)} lower directories: more than {LOWERS_MAX}")
        if self.whiteout not in WHITEOUT_FORMATS:
            raise OptionError(
                errno.EINVAL, f"whiteout format {self.whiteout!r}: not one of {', '.join(WHITEOUT_FORMATS)}"
            )
        if self.durability not in DURABILITIES:
            raise OptionError(errno.EINVAL, f"durability {self.durability!r}: not one of {', '.join(DURABILITIES)}")
        if self.overrides not in OVERRIDES:
            raise OptionError(errno.EINVAL, f"overrides {self.overrides!r}: not one of {', '.join(OVERRIDES[1:])}")
        if self.upper is not None and self.work is None:
            raise OptionError(errno.EINVAL, "an upper directory needs a work directory on the same filesystem (--work)")
        if self.upper is None and self.work is not None:
            raise OptionError(errno.EINVAL, "a work directory needs an upper directory (--upper)")


def check_directory(role: str, path: str) -> str:
    """Return the real path of a branch. Raises OptionError if it cannot be opened as a directory."""
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        code = exc.errno or errno.EINVAL
        raise OptionError(code, f"cannot use {path} as {role}: {os.strerror(code)}") from None
    os.close(fd)
    return os.path.realpath(path)


def make_work(upper: str) -> tuple[str, bool]:
    """Return the default work directory of an upper, UPPER.work beside it, and whether it was created now. For an upper
    that is not a directory nothing is created: opening it reports the error. Raises OSError."""
    real = os.path.realpath(upper)
    work = f"{real}.work"
    if not os.path.isdir(real):
        return work, False
    try:
        os.mkdir(work, 0o700)
    except FileExistsError:
        return work, False
    return work, True


def is_inside(path: str, container: str) -> bool:
    """Whether the real path `path` is `container` or lies below it."""
    return path == container or path.startswith(container.rstrip("/") + "/")


def check_overlap(options: Options) -> None:
    """Refuse overlapping branches, in which a write to one would change another. Raises OptionError.

    The upper and work inside a lower are fine when they are hidden there (`hidden`), as for a view of the host's `/`.
    """
    if options.upper is None or options.work is None:
        return
    upper, work = os.path.realpath(options.upper), os.path.realpath(options.work)
    hidden = [os.path.realpath(path) for path in options.hidden]
    if is_inside(work, upper) or is_inside(upper, work):
        raise OptionError(
            errno.EINVAL, f"upper {options.upper} and work {options.work} overlap: use two separate directories"
        )
    for lower in options.lowers:
        real = os.path.realpath(lower)
        for role, path in (("upper", upper), ("work", work)):
            if is_inside(real, path):
                raise OptionError(
                    errno.EINVAL,
                    f"lower {lower} lies inside the {role} directory {path}: changes of the union would change it",
                )
            if is_inside(path, real) and not any(is_inside(path, place) for place in hidden):
                raise OptionError(
                    errno.EINVAL, f"{role} {path} lies inside the lower {lower}: the union would show it in itself"
                )


def check_branches(options: Options) -> None:
    """Raise OptionError unless the branches can be opened and do not overlap."""
    for lower in options.lowers:
        check_directory("a lower", lower)
        if not options.skip_unreadable and not os.access(lower, os.R_OK | os.X_OK, effective_ids=True):
            raise OptionError(errno.EACCES, f"cannot read the lower {lower}: {os.strerror(errno.EACCES)}")
    if options.upper is not None and options.work is not None:
        check_directory("the upper", options.upper)
        check_directory("the work directory", options.work)
    check_overlap(options)
