"""What does it cost to unpack a source tree?"""

from __future__ import annotations

import sys

from benchmarks.acting import program
from benchmarks.suite import main
from benchmarks.workload import Context, Phase, Workload, debian


def untar(context: Context) -> None:
    """Unpack some thousand files into a new directory."""
    target = context.merged / "unpacked"
    target.mkdir()
    program(["tar", "-xf", context.materials.sources() / "sources.tar"], target)


WORKLOAD = Workload("untar", "tar -x of a source tree", [Phase("untar", untar)], debian, copied=())

if __name__ == "__main__":
    sys.exit(main(only=WORKLOAD))
