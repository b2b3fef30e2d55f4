"""What does it cost to search the text of a large tree?"""

from __future__ import annotations

import sys

from benchmarks.acting import program
from benchmarks.suite import main
from benchmarks.workload import Context, Phase, Workload, debian


def grep(context: Context) -> None:
    """Search the shared text of the system for a string that no file contains."""
    program(
        ["sh", "-c", "! grep -rIF 'a string that is nowhere' usr/share usr/lib/python3.11 usr/include"], context.merged
    )


WORKLOAD = Workload(
    "grep",
    "grep -r through usr/share, usr/lib/python3.11 and usr/include",
    [
        Phase("grep -r, cold", grep),
        Phase("grep -r, warm", grep, warm=True),
        Phase("grep -r, third time", grep, warm=True),
    ],
    debian,
)

if __name__ == "__main__":
    sys.exit(main(only=WORKLOAD))
