"""What does it cost to unpack a source tree?"""

from __future__ import annotations

import sys

from benchmarks.acting import program
from benchmarks.suite import main
from benchmarks.workload import Phase, Site, Workload, debian


def untar(site: Site) -> None:
    """Unpack some thousand files into a new directory."""
    target = site.merged / "unpacked"
    target.mkdir()
    program(["tar", "-xf", site.materials.sources() / "sources.tar"], target)


WORKLOAD = Workload("untar", "tar -x of a source tree", [Phase("untar", untar)], debian, copied=())

if __name__ == "__main__":
    sys.exit(main(only=WORKLOAD))
