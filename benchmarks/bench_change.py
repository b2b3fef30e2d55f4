"""What does it cost to change files of a lower: all their modes, or a byte at the end of each?"""

from __future__ import annotations

import os
import sys
from typing import Final

from benchmarks.acting import files_below, program
from benchmarks.suite import main
from benchmarks.workload import Context, Phase, Workload, debian

_CHMOD: Final = ("usr/share/doc", "usr/share/perl")
_APPEND: Final = "usr/lib/python3.11"


def chmod(context: Context) -> None:
    """`chmod -R go-r` on the documentation and Perl's library: everything is copied up."""
    program(["chmod", "-R", "go-r", *_CHMOD], context.merged)


def append(context: Context) -> None:
    """One byte at the end of every file of Python's library: everything is copied up."""
    for path in files_below(context.merged / _APPEND):
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.write(fd, b"\n")
        os.close(fd)


WORKLOAD = Workload(
    "change",
    "chmod -R of usr/share/doc and usr/share/perl, one byte appended to each file of usr/lib/python3.11",
    [Phase("chmod -R of a lower tree", chmod), Phase("append to each lower file", append)],
    debian,
    copied=(*_CHMOD, _APPEND),
)

if __name__ == "__main__":
    sys.exit(main(only=WORKLOAD))
