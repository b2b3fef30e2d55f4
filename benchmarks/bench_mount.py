"""How long until a mount can be used?"""

from __future__ import annotations

import os
import sys

from benchmarks import systems
from benchmarks.suite import main
from benchmarks.workload import Phase, Sample, Scale, Site, Workload, debian


def first_answer(site: Site) -> None:
    """Ask for something that only the daemon can know."""
    os.lstat(site.merged / "usr")


def mount_ms(sample: Sample, scale: Scale) -> float:
    """Until the mount command returned."""
    return sample.mount_s * 1000


def answer_ms(sample: Sample, scale: Scale) -> float:
    """Until the first request after it was answered."""
    return (sample.mount_s + sample.wall_s) * 1000


def nothing(site: Site) -> None:
    """The mount command is what is measured."""


WORKLOAD = Workload(
    "mount",
    "from the start of the mount command to its end, and to the first answer of the filesystem",
    [
        Phase("mount, until the command returns", nothing, "ms", mount_ms),
        Phase("mount, until the first answer", first_answer, "ms", answer_ms),
    ],
    debian,
    run_deferred=False,
    without={systems.NATIVE: "it is not mounted"},
)

if __name__ == "__main__":
    sys.exit(main(only=WORKLOAD))
