"""What does a random read or write of 4 kB cost, as fio does them?"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.acting import program
from benchmarks.materials import Materials, NoMaterialError
from benchmarks.suite import main
from benchmarks.workload import Context, Phase, Scale, Workload, reported

_SIZE: Final = 128 << 20
_LEAST: Final = 1 << 20


def lowers(materials: Materials, scale: Scale) -> Sequence[Path]:
    """Return a lower with one file of 128 MiB.

    Raises: NoMaterialError when there is no fio.
    """
    if not shutil.which("fio"):
        raise NoMaterialError("fio is not installed")
    return [materials.large_file(scale.of(_SIZE, _LEAST))]


def _fio(context: Context, kind: str) -> float:
    """Read or write a quarter of the file in blocks of 4 kB in random order; return the microseconds of a block."""
    size = context.scale.of(_SIZE, _LEAST) // 4096 * 4096
    argv = ["fio", f"--name={kind}", f"--rw={kind}", "--bs=4k", f"--size={size}", f"--io_size={size // 4}"]
    argv += [f"--filename={context.merged}/large", "--ioengine=psync", "--randseed=7", "--invalidate=0"]
    argv += ["--fallocate=none", "--output-format=json", "--allow_file_create=0"]
    said = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=context.aside)
    job = json.loads(said.stdout[said.stdout.index("{") :])["jobs"][0]["read" if kind == "randread" else "write"]
    return float(job["lat_ns"]["mean"]) / 1000


def read(context: Context) -> float:
    """Read blocks of a file that was not read through this mount before."""
    return _fio(context, "randread")


def copy_up(context: Context) -> None:
    """Copy the file up."""
    program(["sh", "-c", ": >>large; chmod 600 large"], context.merged)


def write(context: Context) -> float:
    """Write blocks of a file that is in the upper."""
    return _fio(context, "randwrite")


WORKLOAD = Workload(
    "random",
    "fio, one thread, 4 kB blocks of a file of 128 MiB in random order",
    [
        Phase("random read of 4 kB, cold", read, "us", reported),
        Phase("", copy_up),
        Phase("random write of 4 kB", write, "us", reported),
    ],
    lowers,
    copied=("large",),
)

if __name__ == "__main__":
    sys.exit(main(only=WORKLOAD))
