"""How fast is a layer unpacked from its tar, beside `tar -x`, and how much memory does that take?

Three layers of 500 MB: `many` has 40,000 small files, `few` has ten large ones, `debian` is a root filesystem; each
without compression, with gzip and with zstd. Both unpack with owners, modes and times onto the same filesystem. Ours
takes the digest of the tar and a fingerprint of each file as well, as a pull does. Not part of the suite: nothing is
mounted here.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.materials import Materials, default_cache, default_run_base
from tests.support import process
from unionfs.bench import rounds as interleaved
from unionfs.bench.run_directory import run_directory

_SIZE: Final = 500_000_000
_MANY: Final = 40_000
_FEW: Final = 10
_MTIME: Final = 1_700_000_000
_ROUNDS: Final = 3
SHAPES: Final = ("many", "few", "debian")
COMPRESSIONS: Final = {"none": ("", []), "gzip": (".gz", ["gzip", "-6nk"]), "zstd": (".zst", ["zstd", "-q3k"])}

_OURS: Final = """
import os, sys, time
from layers import unpack
from layers.attributes import Options
os.mkdir(sys.argv[2])
began = time.perf_counter()
with open(sys.argv[1], "rb") as tar, open(sys.argv[2] + ".prints", "wb") as record:
    unpack.unpack(tar, os.open(sys.argv[2], os.O_RDONLY), Options(), record)
took = time.perf_counter() - began
# Not ru_maxrss: exec(2) hands that of the parent on.
print(took, next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def layer(materials: Materials, shape: str, compression: str, scale: float) -> Path:
    """Return the tar of one shape, compressed."""
    files = round(_MANY * scale) if shape == "many" else _FEW
    rootfs = materials.debian()  # before anything is made: one thing is made at a time

    def make(into: Path) -> None:
        tar = into / "layer.tar"
        if shape == "debian":
            _debian(rootfs, tar)
        else:
            _cut(rootfs, tar, files, round(_SIZE * scale))
        for _, command in COMPRESSIONS.values():
            if command:
                subprocess.run([*command, os.fspath(tar)], check=True)

    directory = materials.made(f"unpack-{shape}", f"{rootfs.name} {files} {scale} 2", make)
    return directory / f"layer.tar{COMPRESSIONS[compression][0]}"


def _debian(rootfs: Path, tar: Path) -> None:
    command = ["tar", "-c", "--numeric-owner", "--sort=name", "-f", os.fspath(tar), "-C", os.fspath(rootfs), "."]
    subprocess.run(command, check=True)


def _cut(rootfs: Path, tar: Path, count: int, size: int) -> None:
    """Files of real content, `count` of them with `size` bytes together, whose sizes differ as those of programs do."""
    chance = random.Random(1)
    weights = [chance.lognormvariate(0, 1.2) if count > _FEW else 1.0 for _ in range(count)]
    content = _content(rootfs)
    with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT) as archive:
        for number, weight in enumerate(weights):
            if number % 100 == 0:
                archive.addfile(_member(f"usr/share/d{number // 100}", tarfile.DIRTYPE, 0o755))
            data = content(round(size * weight / sum(weights)))
            info = _member(f"usr/share/d{number // 100}/file-{number}", tarfile.REGTYPE, 0o644)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def _member(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.mtime = kind, mode, _MTIME
    return info


def _content(rootfs: Path) -> Callable[[int], bytes]:
    """The bytes of the root filesystem's files, one after the other, again and again."""

    def pieces() -> Iterator[bytes]:
        while True:
            for parent, below, names in os.walk(rootfs):
                below.sort()
                for name in sorted(names):
                    path = os.path.join(parent, name)
                    if os.path.isfile(path) and not os.path.islink(path):
                        yield Path(path).read_bytes()

    source, left = pieces(), bytearray()

    def take(count: int) -> bytes:
        while len(left) < count:
            left.extend(next(source))
        data = bytes(left[:count])
        del left[:count]
        return data

    return take


def ours(tar: Path, into: Path) -> tuple[float, int]:
    """Unpack with our code; return the seconds, and the most memory in KiB."""
    env = {**os.environ, "PYTHONPATH": os.fspath(Path(__file__).resolve().parents[1])}
    took, memory = process.run([sys.executable, "-c", _OURS, tar, into], env=env, timeout_s=600).stdout.split()
    return float(took), int(memory)


def theirs(tar: Path, into: Path) -> tuple[float, int]:
    """Unpack with tar; return the seconds, and 0: the memory of tar is not measured."""
    into.mkdir()
    began = time.perf_counter()
    owners = ["--same-owner"] if os.geteuid() == 0 else []
    process.run(["tar", "-xp", "--numeric-owner", *owners, "-f", tar, "-C", into], timeout_s=600)
    return time.perf_counter() - began, 0


def measured(tar: Path, directory: Path, rounds: int) -> dict[str, Any]:
    """Return the figures of interleaved rounds of both; nothing is removed in between (see README.md)."""
    found: dict[str, list[tuple[float, int]]] = {"ours": [], "tar": []}
    spent: dict[str, list[float]] = {"ours": [], "tar": []}  # processor time, with that of Python's start
    systems = [("ours", ours), ("tar", theirs)]
    for number in range(rounds):
        for name, unpack in interleaved.order(systems, number):
            os.sync()
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            found[name].append(unpack(tar, directory / f"{name}-{number}"))
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            spent[name].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    medians = {name: statistics.median(seconds for seconds, _ in samples) for name, samples in found.items()}
    return {
        "ours_s": round(medians["ours"], 3),
        "tar_s": round(medians["tar"], 3),
        "speed": round(medians["tar"] / medians["ours"], 2),
        "cpu_s": {name: round(statistics.median(values), 2) for name, values in spent.items()},
        "memory_mb": round(max(memory for _, memory in found["ours"]) * 1024 / 1e6),
        "seconds": {name: [round(seconds, 3) for seconds, _ in samples] for name, samples in found.items()},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print one JSON line for each layer: seconds, and `speed`, which is that of ours over that of tar."""
    parser = argparse.ArgumentParser(description="Unpacking a layer beside tar -x.")
    parser.add_argument("--rounds", metavar="N", type=int, default=_ROUNDS)
    parser.add_argument("--scale", metavar="FACTOR", type=float, default=1.0, help="size of the layers (default: 1)")
    parser.add_argument("--shapes", metavar="NAME,...", default=",".join(SHAPES))
    parser.add_argument("--compressions", metavar="NAME,...", default=",".join(COMPRESSIONS))
    arguments = parser.parse_args(argv)
    materials = Materials(default_cache(), small=arguments.scale < 0.05)
    with run_directory(default_run_base()) as directory:
        for shape in arguments.shapes.split(","):
            for compression in arguments.compressions.split(","):
                if compression == "zstd" and not shutil.which("zstd"):
                    print("zstd is not installed: left out", file=sys.stderr)
                    continue
                tar = layer(materials, shape, compression, arguments.scale)
                into = directory / f"{shape}-{compression}"
                into.mkdir()
                found = measured(tar, into, arguments.rounds)
                print(json.dumps({"shape": shape, "compression": compression, **found}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
