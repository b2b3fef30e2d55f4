"""How long until a mount can be used?"""

from __future__ import annotations

import os
import sys

from benchmarks.suite import main
from benchmarks.workload import Context, Phase, Sample, Scale, Workload, debian
from unionfs.bench import systems


def first_answer(context: Context) -> None:
    """Ask for attributes that only the daemon has."""
    os.lstat(context.merged / "usr")


def mount_ms(sample: Sample, scale: Scale) -> float:
    """Return the milliseconds until the mount command returned."""
    return sample.mount_s * 1000


def answer_ms(sample: Sample, scale: Scale) -> float:
    """Return the milliseconds until the first request after it was answered."""
    return (sample.mount_s + sample.wall_s) * 1000


def nothing(context: Context) -> None:
    """Do nothing: the mount command itself is measured."""


WORKLOAD = Workload(
    "mount",
    "from the start of the mount command to its end, and to the first answer of the filesystem",
    [
        Phase("mount, until the command returns", nothing, "ms", mount_ms),
        Phase("mount, until the first answer", first_answer, "ms", answer_ms),
    ],
    debian,
    is_mount_timed=True,
    without={systems.NATIVE: "it is not mounted"},
)

if __name__ == "__main__":
    sys.exit(main(only=WORKLOAD))
