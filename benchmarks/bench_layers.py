"""What does each further layer cost?"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from benchmarks.bench_find import find
from benchmarks.materials import Materials
from benchmarks.suite import main
from benchmarks.workload import Phase, Sample, Scale, Workload
from unionfs.bench import systems

_FILES: Final = 5_000
_DIRECTORIES: Final = 50
_LAYERS: Final = (1, 16, 128, 500)  # 500 is the most that the kernel's overlayfs takes


def _lowers(layers: int) -> Callable[[Materials, Scale], Sequence[Path]]:
    return lambda materials, scale: materials.spread(
        scale.of(_FILES, layers), scale.of(_DIRECTORIES, 2), layers, size=1000
    )


def _us_an_entry(layers: int) -> Callable[[Sample, Scale], float]:
    return lambda sample, scale: sample.wall_s * 1e6 / (scale.of(_FILES, layers) + scale.of(_DIRECTORIES, 2))


WORKLOADS = [
    Workload(
        f"layers-{layers}",
        f"cold find over 5,000 files in 50 directories, spread over {layers} lowers, per entry",
        [Phase(f"cold find of an entry, {layers} lowers", find, "us", _us_an_entry(layers))],
        _lowers(layers),
        without={systems.NATIVE: "a plain directory has no layers"} if layers > 1 else {},
    )
    for layers in _LAYERS
]

if __name__ == "__main__":
    sys.exit(main(only=WORKLOADS))
