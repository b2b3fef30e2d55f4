"""What does it cost to list a whole root filesystem and stat every file?"""

from __future__ import annotations

import sys

from benchmarks.acting import program
from benchmarks.suite import main
from benchmarks.workload import Context, Phase, Workload, debian


def find(context: Context) -> None:
    """`find -printf %s`: every name and its attributes."""
    program(["find", ".", "-printf", "%s %p\n"], context.merged)


WORKLOAD = Workload(
    "find",
    "find -printf '%s %p' over a Debian root filesystem",
    [
        Phase("find, cold", find),
        Phase("find, warm", find, warm=True),
        Phase("find, third time", find, warm=True),
    ],
    debian,
)

if __name__ == "__main__":
    sys.exit(main(only=WORKLOAD))
