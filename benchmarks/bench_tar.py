"""What does it cost to read every file of a root filesystem once, as a backup does?"""

from __future__ import annotations

import sys

from benchmarks.acting import program
from benchmarks.suite import main
from benchmarks.workload import Context, Phase, Workload, debian


def tar(context: Context) -> None:
    """Pack everything. Not to /dev/null itself: tar would notice and not read the files."""
    program(["sh", "-c", "tar -c --numeric-owner . | cat >/dev/null"], context.merged)


WORKLOAD = Workload(
    "tar",
    "tar -c of a Debian root filesystem",
    [Phase("tar, cold", tar), Phase("tar, warm", tar, warm=True)],
    debian,
)

if __name__ == "__main__":
    sys.exit(main(only=WORKLOAD))
