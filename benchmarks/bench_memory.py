"""How much memory does the daemon keep for each file that was looked up?"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.bench_find import find
from benchmarks.materials import Materials
from benchmarks.suite import main
from benchmarks.workload import Phase, Sample, Scale, Workload
from unionfs.bench import systems

_FILES: Final = 100_000
_DIRECTORIES: Final = 1_000
_NO_DAEMON: Final = "it has no daemon"


def lowers(materials: Materials, scale: Scale) -> Sequence[Path]:
    """100,000 empty files."""
    return materials.spread(scale.of(_FILES), scale.of(_DIRECTORIES), 1)


def bytes_a_file(sample: Sample, scale: Scale) -> float | None:
    """The growth of the daemon's resident memory, divided by the number of files."""
    return None if sample.daemon_growth is None else max(0, sample.daemon_growth) / scale.of(_FILES)


WORKLOAD = Workload(
    "memory",
    "resident memory that the daemon gains while find walks 100,000 files in 1,000 directories",
    [Phase("memory of the daemon a file", find, "B", bytes_a_file)],
    lowers,
    without={systems.NATIVE: _NO_DAEMON, systems.OVERLAYFS: _NO_DAEMON},
)

if __name__ == "__main__":
    sys.exit(main(only=WORKLOAD))
