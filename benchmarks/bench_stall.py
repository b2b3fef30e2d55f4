"""How long do other requests wait while a large file is copied up?"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.materials import Materials
from benchmarks.suite import main
from benchmarks.workload import Context, Phase, Scale, Workload, reported
from unionfs.bench import systems

_SIZE: Final = 2 << 30
_LEAST: Final = 1 << 20
_FILES: Final = 20_000
_DIRECTORIES: Final = 100
_EVERY_S: Final = 0.002


def lowers(materials: Materials, scale: Scale) -> Sequence[Path]:
    """The large file above many small ones, each of which is asked for once."""
    small = materials.spread(scale.of(_FILES, 200), scale.of(_DIRECTORIES), 1)
    return [materials.large_file(scale.of(_SIZE, _LEAST)), *small]


def stat_meanwhile(context: Context) -> float:
    """stat a file every 2 ms while another process appends to the large one; the 99th percentile in milliseconds.

    The time of a stat counts from the moment at which it was due, so stats behind a slow one count as waiting, too.
    """
    files, directories = context.scale.of(_FILES, 200), context.scale.of(_DIRECTORIES)
    os.listdir(context.merged)  # the daemon has started: that is another benchmark's question
    writer = os.fork()
    if writer == 0:
        fd = os.open(context.merged / "large", os.O_WRONLY | os.O_APPEND)
        os.write(fd, b"!")
        os._exit(0)
    waited = []
    due = time.monotonic()
    ended = False
    number = 0
    while not ended or number < 3:
        time.sleep(max(0.0, due - time.monotonic()))
        ended = ended or os.waitpid(writer, os.WNOHANG)[0] == writer
        os.lstat(context.merged / f"d{number % files % directories}" / f"file{number % files}")
        waited.append(time.monotonic() - due)
        due += _EVERY_S
        number += 1
    # Stats that were due during the copy and could not be made have waited until now.
    while due < time.monotonic():
        waited.append(time.monotonic() - due)
        due += _EVERY_S
    return sorted(waited)[len(waited) * 99 // 100] * 1000


WORKLOAD = Workload(
    "stall",
    "stat of other files every 2 ms while a file of 2 GiB is copied up: 99th percentile",
    [Phase("stat during a copy-up of 2 GiB, p99", stat_meanwhile, "ms", reported)],
    lowers,
    without={systems.NATIVE: "it copies nothing up"},
)

if __name__ == "__main__":
    sys.exit(main(only=WORKLOAD))
