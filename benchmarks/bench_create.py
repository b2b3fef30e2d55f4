"""What does it cost to create small files?"""

from __future__ import annotations

import os
import sys
from typing import Final

from benchmarks.suite import main
from benchmarks.workload import Context, Phase, Workload, debian

_FILES: Final = 10_000
_IN_A_DIRECTORY: Final = 100
_CONTENT: Final = b"x" * 200


def create(context: Context) -> None:
    """Create files of 200 bytes in directories of 100."""
    top = os.fspath(context.merged)
    directory = top
    for number in range(context.scale.of(_FILES)):
        if number % _IN_A_DIRECTORY == 0:
            directory = f"{top}/new{number}"
            os.mkdir(directory)
        fd = os.open(f"{directory}/file{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(fd, _CONTENT)
        os.close(fd)


WORKLOAD = Workload(
    "create", "10,000 files of 200 bytes in 100 directories", [Phase("create 10,000 files", create)], debian, ()
)

if __name__ == "__main__":
    sys.exit(main(only=WORKLOAD))
