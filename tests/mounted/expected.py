"""What a transport cannot do, and why. The one place for differences that are no bug of ours.

An entry makes the check an expected failure; when the check starts to pass, the run fails until the entry is removed.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Final, NamedTuple

from tests.mounted.subjects import Subject


class Difference(NamedTuple):
    """`subject` and `check` are shell patterns on Subject's text and the check's name."""

    subject: str
    check: str
    reason: str


_NO_FALLOCATE = "pyfuse3 has no fallocate request: EOPNOTSUPP"
_NO_SHIFTING = "fallocate: the kernel's FUSE passes on KEEP_SIZE, PUNCH_HOLE and ZERO_RANGE, all else is EOPNOTSUPP"
_NO_LSEEK = "pyfuse3 has no lseek request: the kernel takes the whole file for data"
_NO_TMPFILE = "pyfuse3 has no tmpfile request: EOPNOTSUPP"
_UMASK_FIRST = "pyfuse3 cannot ask for FUSE_DONT_MASK: the kernel applies the umask before a default ACL can replace it"
_NO_EXPORT = "pyfuse3 cannot ask for FUSE_EXPORT_SUPPORT: handles of what the kernel forgot are stale"
_UNREADABLE = "a daemon without privilege cannot read a lower file or directory of mode 0, so it cannot copy it up"

_KILLS_ALONE = "pyfuse3 cannot ask for FUSE_HANDLE_KILLPRIV_V2: the kernel clears set-id bits by the mode alone"
_LATE_PAGES = "pyfuse3 does not say whether a write is of the page cache's: the branch removes the capability"

_OPENS_COPY_UP = "passthrough: a lower file is copied up when it is opened for writing, as on the kernel's overlay"

DIFFERENCES: Final = (
    Difference("passthrough-*", "timestamps.files_when_written", _OPENS_COPY_UP),
    Difference("pyfuse3-*", "data.fallocate_extends", _NO_FALLOCATE),
    Difference("pyfuse3-*", "data.fallocate_punches_and_zeroes", _NO_FALLOCATE),
    Difference("pyfuse3-*", "privileges.space_takes_them", _NO_FALLOCATE),
    Difference("pyfuse3-*", "privileges.capabilities_set_after_*", _LATE_PAGES),
    Difference("pyfuse3-*", "privileges.changes_from_outside_*", _KILLS_ALONE),
    Difference("pyfuse3-*", "timestamps.space_moves_both", _NO_FALLOCATE),
    Difference("pyfuse3-*", "limits.space_*", _NO_FALLOCATE),
    Difference("pyfuse3-*", "space.punching_*", _NO_FALLOCATE),
    Difference("pyfuse3-*", "space.zeroing_*", _NO_FALLOCATE),
    Difference("pyfuse3-*", "space.reserved_*", _NO_FALLOCATE),
    Difference("*", "space.ranges_*", _NO_SHIFTING),
    Difference("pyfuse3-*", "space.seeking_*", _NO_LSEEK),
    Difference("pyfuse3-*", "data.seek_*", _NO_LSEEK),
    Difference("pyfuse3-*", "opening.o_tmpfile_*", _NO_TMPFILE),
    Difference("pyfuse3-*", "unnamed.*", _NO_TMPFILE),
    Difference("pyfuse3-*", "inheriting.unnamed_*", _NO_TMPFILE),
    Difference("pyfuse3-*", "handles.handles_lead_*", _NO_EXPORT),
    Difference("pyfuse3-*", "handles.handles_stay_*", _NO_EXPORT),
    Difference("pyfuse3-*", "handles.handles_of_files_*", _NO_EXPORT),
    Difference("*-user-plain", "permissions.mode_zero", _UNREADABLE),
    Difference("pyfuse3-*", "acls.default_acls_replace_the_umask", _UMASK_FIRST),
    Difference("pyfuse3-*", "acls.minimal_default_acls_replace_the_umask", _UMASK_FIRST),
)


def expected(subject: Subject, check: str) -> str | None:
    """Why `check` must fail on `subject`, or None: it must pass."""
    if subject.is_native:
        return None
    for difference in DIFFERENCES:
        if fnmatchcase(str(subject), difference.subject) and fnmatchcase(check, difference.check):
            return difference.reason
    return None
