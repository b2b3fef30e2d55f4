"""What does it cost to remove a tree that a lower holds?"""

from __future__ import annotations

import sys
from typing import Final

from benchmarks.acting import program
from benchmarks.suite import main
from benchmarks.workload import Context, Phase, Workload, debian

_TREES: Final = ("usr/lib", "usr/share")


def remove(context: Context) -> None:
    """`rm -rf usr/lib usr/share`, most of the root filesystem."""
    program(["rm", "-rf", *_TREES], context.merged)


WORKLOAD = Workload(
    "remove",
    "rm -rf of usr/lib and usr/share of a lower",
    [Phase("rm -rf of a lower tree", remove)],
    debian,
    copied=_TREES,
)

if __name__ == "__main__":
    sys.exit(main(only=WORKLOAD))
